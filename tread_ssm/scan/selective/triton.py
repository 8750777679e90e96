"""The Triton backend: CUDA and ROCm devices, or the CPU under Triton's interpreter.

Only the host side is here, so that asking whether the backend can run loads nothing; the kernels
are in triton_scan.py and triton_conv.py. TRITON_INTERPRET=1 in the environment, set before Triton
is first imported, runs the same kernels in Python on the CPU: slow, meant for tests.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from tread_ssm.scan.selective.reference import ScanGradients

CHUNK = 32
"""Visits per state that the forward pass keeps for the backward pass."""


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run, or None."""
    if device.type not in ("cpu", "cuda"):
        return f"Triton kernels run on CUDA and ROCm devices, not on {device.type}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels need a GPU (or TRITON_INTERPRET=1, for tests)"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype} is not supported; the kernels take float32, bfloat16 and float16"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"compute capability {major}.{minor}; the kernels need 8.0 or higher"
    return None


def states_shape(batch: int, visits: int, dim: int, state: int) -> tuple[int, ...]:
    """(B, chunks, N, D): the state before every CHUNK-th visit."""
    return (batch, -(-visits // CHUNK), state, dim)


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    order: Tensor | None,
    gap: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the kept states. Arguments as in `selective_scan`."""
    from tread_ssm.scan.selective import triton_scan

    u, delta, A, B, C = (x.contiguous() for x in (u, delta, A, B, C))
    D, z, delta_bias, order, gap = map(_contiguous, (D, z, delta_bias, order, gap))
    return triton_scan.forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, gap)


def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    order: Tensor | None,
    gap: Tensor | None,
    states: Tensor,
) -> ScanGradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias; None where the argument is None."""
    from tread_ssm.scan.selective import triton_scan

    grad_y, u, delta, A, B, C = (x.contiguous() for x in (grad_y, u, delta, A, B, C))
    D, z, delta_bias, order, gap = map(_contiguous, (D, z, delta_bias, order, gap))
    return triton_scan.backward(
        grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, gap, states
    )


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> Tensor:
    """y (B, L, D) in x's dtype. Arguments as in `causal_conv`."""
    from tread_ssm.scan.selective import triton_conv

    x, weight = x.contiguous(), weight.contiguous()
    bias, order, gap = map(_contiguous, (bias, order, gap))
    return triton_conv.forward(x, weight, bias, order, gap, activation)


def conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    from tread_ssm.scan.selective import triton_conv

    grad_y, x, weight = grad_y.contiguous(), x.contiguous(), weight.contiguous()
    bias, order, gap = map(_contiguous, (bias, order, gap))
    return triton_conv.backward(grad_y, x, weight, bias, order, gap, activation)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
