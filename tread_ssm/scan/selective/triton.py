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

from tread_ssm.scan.inputs import ConvInputs, Gradients, ScanInputs
from tread_ssm.scan.selective import gpu
from tread_ssm.scan.visits import contiguous, n_visits, output_like, row_stride

FAST_ON = ("cuda",)

CHUNK = 32
"""Visits per state that the forward pass keeps for the backward pass."""
PART = 2
"""Visits whose states backward holds in registers at a time; divides CHUNK. 4 already spills."""
CONV_BLOCK_K, CONV_BLOCK_D, CONV_WARPS = 16, 64, 4


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run, or None."""
    if device.type not in ("cpu", "cuda"):
        return f"Triton kernels run on CUDA and ROCm devices, not on {device.type}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels need a GPU (or TRITON_INTERPRET=1, for tests)"
    if reason := gpu.dtype_unavailable(dtype):
        return reason
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" and torch.version.hip is None:
        return gpu.capability_unavailable(device)
    return None


def forward_blocks(state: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_D and warps of the scan's forward kernel: about 16 states a thread."""
    block_n = 1 << (state - 1).bit_length()
    return block_n, min(2048 // block_n, 128), 4


def backward_blocks(state: int) -> tuple[int, int, int]:
    """The same of its backward kernel, one warp each: its sums over N and D need no barrier."""
    block_n = 1 << (state - 1).bit_length()
    return block_n, min(512 // block_n, 32), 1


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, D): the state before every CHUNK-th visit."""
    return gpu.kept_states_shape(x, CHUNK)


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the kept states."""
    from tread_ssm.scan.selective.triton_scan import forward_kernel

    x = contiguous(x)
    u, delta, A, B, C, D, z, delta_bias, order, gap, delta_softplus = x
    (batch, length, dim), state = u.shape, A.shape[1]
    visits = n_visits(u, order)
    y = output_like(u, visits)
    states = torch.empty(scan_states_shape(x), device=u.device, dtype=torch.float32)
    block_n, block_d, warps = forward_blocks(state)
    with torch.cuda.device_of(u):
        forward_kernel[(batch * -(-dim // block_d),)](
            u, delta, A.t().contiguous(), B, C, D, z, delta_bias, order, gap, y, states,
            visits, length, dim, state, row_stride(order), row_stride(gap),
            CHUNK, delta_softplus, block_n, block_d,
            num_warps=warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y, states


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias."""
    from tread_ssm.scan.selective.triton_scan import backward_kernel

    x, grad_y, states = contiguous(x), grad_y.contiguous(), states.contiguous()
    u, delta, A, B, C, D, z, delta_bias, order, gap, delta_softplus = x
    (batch, length, dim), state = u.shape, A.shape[1]
    block_n, block_d, warps = backward_blocks(state)
    blocks = -(-dim // block_d)
    grads = gpu.ScanGradients.empty(x, blocks)
    shape = (batch * blocks, CHUNK // PART, block_n, block_d)
    scratch = torch.empty(shape, device=u.device, dtype=torch.float32)
    with torch.cuda.device_of(u):
        backward_kernel[(batch * blocks,)](
            grad_y, u, delta, A.t().contiguous(), B, C, D, z, delta_bias, order, gap, states,
            scratch, *grads.buffers(),
            n_visits(u, order), length, dim, state, row_stride(order), row_stride(gap),
            CHUNK, PART, delta_softplus, block_n, block_d,
            num_warps=warps, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return grads.summed(x)


def conv_forward(inputs: ConvInputs) -> Tensor:
    """y (B, L, D) in x's dtype."""
    from tread_ssm.scan.selective.triton_conv import forward_kernel

    x, weight, bias, order, gap, activation = contiguous(inputs)
    batch, length, dim = x.shape
    visits = n_visits(x, order)
    y = output_like(x, visits)
    with torch.cuda.device_of(x):
        forward_kernel[_conv_grid(batch, visits, dim)](
            x, weight, bias, order, gap, y,
            visits, length, dim, row_stride(order), row_stride(gap),
            activation, weight.shape[1], CONV_BLOCK_K, CONV_BLOCK_D,
            num_warps=CONV_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y


def conv_backward(grad_y: Tensor, inputs: ConvInputs) -> Gradients:
    """Gradients of x, weight and bias."""
    from tread_ssm.scan.selective.triton_conv import backward_kernel

    grad_y = grad_y.contiguous()
    x, weight, bias, order, gap, activation = contiguous(inputs)
    (batch, length, dim), width = x.shape, weight.shape[1]
    visits = n_visits(x, order)
    grad_x = output_like(x, visits)
    strips = batch * -(-visits // CONV_BLOCK_K)
    part_weight = torch.empty(strips, width, dim, device=x.device, dtype=torch.float32)
    part_bias = None if bias is None else torch.empty_like(part_weight[:, 0])
    with torch.cuda.device_of(x):
        backward_kernel[_conv_grid(batch, visits, dim)](
            grad_y, x, weight, bias, order, gap, grad_x, part_weight, part_bias,
            visits, length, dim, row_stride(order), row_stride(gap),
            activation, width, CONV_BLOCK_K, CONV_BLOCK_D,
            num_warps=CONV_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    grad_weight = part_weight.sum(0).t().contiguous()
    return grad_x, grad_weight, None if part_bias is None else part_bias.sum(0)


def _conv_grid(batch: int, visits: int, dim: int) -> tuple[int]:
    return (batch * -(-visits // CONV_BLOCK_K) * -(-dim // CONV_BLOCK_D),)
