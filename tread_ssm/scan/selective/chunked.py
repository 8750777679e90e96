"""The scan in plain torch, a chunk of visits at a time: the fallback where nothing is compiled.

Same results as the reference, but only one chunk of states is alive at once: the forward keeps the
state at the start of every chunk, the backward recomputes the rest. No autograd graph is built.

Shape legend: as in reference.py; inside, time comes first: (T, B, D, N) with T visits of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.inputs import Gradients, ScanInputs
from tread_ssm.scan.selective.reference import (
    conv_backward,
    conv_forward,
    silu_slope,
    step_size,
    unavailable,
)
from tread_ssm.scan.visits import gap_scale, n_visits, put, take, visited_positions

__all__ = [
    "FAST_ON",
    "conv_backward",
    "conv_forward",
    "scan_backward",
    "scan_forward",
    "scan_states_shape",
    "unavailable",
]

FAST_ON = ()
CHUNK = 32


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """One state per chunk, as it stands before the chunk."""
    return (-(-n_visits(x.u, x.order) // CHUNK), x.u.shape[0], *x.A.shape)


@dataclass(frozen=True)
class _Visits:
    """Inputs in visiting order, time first, in the dtype of the state."""

    u: Tensor  # (K, B, D)
    dt: Tensor  # (K, B, D), after bias and softplus
    stretch: Tensor  # (K, B, D), dt times 1 + gap
    A: Tensor  # (D, N)
    B: Tensor  # (K, B, N)
    C: Tensor  # (K, B, N)

    def chunks(self) -> list[slice]:
        return [slice(k, k + CHUNK) for k in range(0, len(self.u), CHUNK)]

    def run(self, part: slice, before_BDN: Tensor) -> tuple[Tensor, Tensor]:
        """Decays and states of one chunk, both (T, B, D, N)."""
        decay = torch.exp_(self.stretch[part].unsqueeze(-1) * self.A)
        h = (self.dt[part] * self.u[part]).unsqueeze(-1) * self.B[part].unsqueeze(2)
        state = before_BDN
        for a, x in zip(decay.unbind(0), h.unbind(0), strict=True):
            x.addcmul_(a, state)
            state = x
        return decay, h


def _visits(x: ScanInputs, visit: Tensor | None) -> _Visits:
    u, delta, B, C = (take(t, visit).transpose(0, 1) for t in (x.u, x.delta, x.B, x.C))
    dt = step_size(delta, x.delta_bias, x.delta_softplus)
    scale = gap_scale(x.gap, dt.dtype)
    stretch = dt if isinstance(scale, float) else dt * scale.transpose(0, 1)
    return _Visits(u, dt, stretch, x.A, B, C)


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype, and the state before each chunk (chunks, B, D, N)."""
    visit = visited_positions(x.order, x.u)
    v = _visits(x, visit)
    states = v.u.new_empty(scan_states_shape(x))
    state = torch.zeros_like(states[0])
    y = torch.empty_like(v.u)
    for kept, part in zip(states, v.chunks(), strict=True):
        kept.copy_(state)
        _, h = v.run(part, state)
        state = h[-1].clone()  # a view would keep the whole chunk alive
        y[part] = (h @ v.C[part].unsqueeze(-1)).squeeze(-1)
    y = y.transpose(0, 1)
    if x.D is not None:
        y = y + x.D * v.u.transpose(0, 1)
    if x.z is not None:
        y = y * F.silu(take(x.z, visit))
    return put(y.contiguous(), visit, x.u), states


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """As reference.scan_backward, from the chunk states that the forward kept."""
    u, delta, _, B, C, D, z, delta_bias, order, gap, delta_softplus = x
    visit = visited_positions(order, u)
    v = _visits(x, visit)
    g = take(grad_y, visit).transpose(0, 1)
    z_ = None if z is None else take(z, visit).transpose(0, 1)
    gated = g if z_ is None else g * F.silu(z_)
    y = None if z_ is None else torch.empty_like(v.u)

    grad_A = torch.zeros_like(v.A)
    grad_u, grad_dt, grad_B, grad_C = (torch.empty_like(x) for x in (v.u, v.dt, v.B, v.C))
    carry = torch.zeros_like(states[0])
    for part, before in zip(reversed(v.chunks()), reversed(states.unbind(0)), strict=True):
        decay, h = v.run(part, before)
        if y is not None:
            y[part] = (h @ v.C[part].unsqueeze(-1)).squeeze(-1)
        gh = gated[part].unsqueeze(-1) * v.C[part].unsqueeze(2)
        carry = _backwards(gh.unbind(0), decay.unbind(0), carry)
        grad_C[part] = (gated[part].unsqueeze(2) @ h).squeeze(2)
        grad_B[part] = ((v.dt[part] * v.u[part]).unsqueeze(2) @ gh).squeeze(2)
        grad_input = (gh @ v.B[part].unsqueeze(-1)).squeeze(-1)
        exponent = decay.mul_(gh)  # gradient of the exponents (1 + gap) dt A
        exponent[1:].mul_(h[:-1])
        exponent[0].mul_(before)
        grad_u[part] = grad_input * v.dt[part]
        grad_dt[part] = (exponent * v.A).sum(-1)
        grad_A += exponent.mul_(v.stretch[part].unsqueeze(-1)).sum((0, 1))
        if gap is not None:
            grad_dt[part] *= 1 + gap.to(v.dt.dtype).expand(u.shape[0], -1).T[part].unsqueeze(-1)
        grad_dt[part] += grad_input * v.u[part]

    grad_D = grad_z = None
    if y is not None and z_ is not None and z is not None:
        y = y if D is None else y + D * v.u
        grad_z = _back(g * y * silu_slope(z_), visit, z)
    if D is not None:
        grad_u += D * gated
        grad_D = (v.u * gated).sum((0, 1))
    if delta_softplus:
        grad_dt *= -torch.expm1(-v.dt)  # the slope of softplus, from its value
    return (
        _back(grad_u, visit, u),
        _back(grad_dt, visit, delta),
        grad_A,
        _back(grad_B, visit, B),
        _back(grad_C, visit, C),
        grad_D,
        grad_z,
        None if delta_bias is None else grad_dt.sum((0, 1)),
    )


def _backwards(gh: Sequence[Tensor], decay: Sequence[Tensor], carry: Tensor) -> Tensor:
    """Adds to the gradient of each state, in place, what reaches it from later visits; returns
    what reaches the state before the first."""
    gh[-1].add_(carry)
    for k in reversed(range(len(gh) - 1)):
        gh[k].addcmul_(decay[k + 1], gh[k + 1])
    return decay[0] * gh[0]


def _back(x_KBD: Tensor, visit: Tensor | None, like: Tensor) -> Tensor:
    return put(x_KBD.transpose(0, 1).contiguous(), visit, like)
