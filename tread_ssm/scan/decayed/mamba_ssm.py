"""mamba-ssm's `mamba_chunk_scan_combined` as a backend, where the package is installed.

The package computes, per head,

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t^T,   y_t = C_t h_t

and knows no visiting order and no gap: this adapter gathers the visits and scatters the result.

The package ties what a token writes to its decay, by dt. With A = -1, dt = -log_decay and
x = v / dt, the gradient of log_decay would be the small difference of two terms of size 1 / dt, and
nothing at all where log_decay is 0. So a visit becomes two steps of a sequence twice as long: one
decays, dt = -log_decay, and writes nothing; one writes, x = v / WRITE with dt = WRITE, a power of
two so small that exp(-WRITE) is 1. Both are exact.

The backward runs forward again and differentiates that one call; see selective/mamba_ssm.py.

Shape legend: B batch, L positions, K visits (K <= L), G groups, N states, H heads, P channels of a
head.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from tread_ssm.scan.decayed.reference import gathered_one, scattered
from tread_ssm.scan.inputs import Gradients, SSDInputs
from tread_ssm.scan.selective.gpu import dtype_unavailable
from tread_ssm.scan.visits import gap_scale, visited_positions

FAST_ON = ("cuda",)
FUSES_TERMS = False
CHUNK = 128  # steps
WRITE = 2.0**-40


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the package cannot run, or None. Looks for it without importing it."""
    if device.type != "cuda":
        return f"mamba-ssm runs on CUDA devices, not on {device.type}"
    if reason := dtype_unavailable(dtype):
        return reason
    return "the package mamba-ssm is not installed" if find_spec("mamba_ssm") is None else None


def ssd_states_shape(x: SSDInputs) -> tuple[int, ...]:
    """Nothing is kept between forward and backward."""
    return (0,)


def ssd_forward(x: SSDInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in v's dtype, and an empty tensor."""
    visit = visited_positions(x.order, x.v)
    with torch.no_grad():
        y = _scan(*_steps(x, visit))
    return scattered(y[:, 1::2], visit, x.v), x.v.new_empty(0, dtype=torch.float32)


def ssd_backward(grad_y: Tensor, x: SSDInputs, states: Tensor) -> Gradients:
    """Gradients of q, k, v and log_decay, and two None."""
    visit = visited_positions(x.order, x.v)
    leaves = [t.requires_grad_() for t in _steps(x, visit)]
    with torch.enable_grad():
        y = _scan(*leaves)
    grad_y = _at_writes(gathered_one(grad_y, visit).to(y.dtype))
    gv, gdt, gk, gq = torch.autograd.grad(y, leaves, grad_y)
    glog = -gdt[:, ::2] * gap_scale(x.gap, gdt.dtype)
    return (
        scattered(gq[:, 1::2], visit, x.q),
        scattered(gk[:, 1::2], visit, x.k),
        scattered(gv[:, 1::2] / WRITE, visit, x.v),
        scattered(glog, visit, x.log_decay),
        None,
        None,
    )


def _steps(x: SSDInputs, visit: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The package's x (B, 2K, H, P), dt (B, 2K, H), B and C (B, 2K, G, N)."""
    x.refuse_terms("decayed.mamba_ssm")
    data = torch.float32 if x.v.dtype == torch.float16 else x.v.dtype  # v / WRITE overflows float16
    q, k, v = (_at_writes(gathered_one(t, visit).to(data)) for t in x[:3])
    log_decay = gathered_one(x.log_decay, visit) * gap_scale(x.gap, x.log_decay.dtype)
    dt = torch.stack([-log_decay, torch.full_like(log_decay, WRITE)], 2).flatten(1, 2)
    return v / WRITE, dt, k, q


def _at_writes(x: Tensor) -> Tensor:
    """x (B, K, ...) at the steps that write, (B, 2K, ...); zeros at those that decay."""
    return torch.stack([torch.zeros_like(x), x], 2).flatten(1, 2)


def _scan(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y (B, 2K, H, P), by mamba-ssm."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    A = dt.new_full((dt.shape[2],), -1.0)
    y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, CHUNK)
    return y
