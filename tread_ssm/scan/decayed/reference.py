"""The specification of the decayed product: its recurrence in plain torch, any floating dtype.

    h_t = exp((1 + gap_t) log_decay_t) h_(t-1) + scale_t k_t v_t^T
    y_t = q_t h_t + diagonal_t v_t

(Mamba-2, Dao & Gu, arXiv 2405.21060, section 3.1; t runs over the visits, h is (N, P) per head.)
Every state of every visit is kept. Backends are tested against this file.

Shape legend: B batch, L positions, K visits (K <= L), G groups, N states, H heads, P channels of a
head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tread_ssm.scan.inputs import Gradients, SSDInputs
from tread_ssm.scan.visits import gap_scale, put, take, visited_positions

FAST_ON = ()
FUSES_TERMS = True


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None: the reference runs everywhere."""
    return None


def ssd_states_shape(x: SSDInputs) -> tuple[int, ...]:
    """The reference keeps nothing between forward and backward."""
    return (0,)


def ssd_forward(x: SSDInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in v's dtype, and an empty tensor."""
    visit = visited_positions(x.order, x.v)
    q_BKHN, k_BKHN, v_BKHP, decay_BKH = gathered(x, visit)
    scale, diagonal = gathered_terms(x, visit)
    h_BKHNP = _states(k_BKHN, scale * v_BKHP, decay_BKH)
    y = (q_BKHN.unsqueeze(-1) * h_BKHNP).sum(-2)  # a matrix product's rounding would depend on K
    y = y + diagonal * v_BKHP
    return scattered(y, visit, x.v), y.new_empty(0)


def ssd_backward(grad_y: Tensor, x: SSDInputs, states: Tensor) -> Gradients:
    """Gradients of q, k, v, log_decay, scale and diagonal."""
    visit = visited_positions(x.order, x.v)
    q_BKHN, k_BKHN, v_BKHP, decay_BKH = gathered(x, visit)
    g_BKHP = gathered_one(grad_y, visit)
    scale, diagonal = gathered_terms(x, visit)
    written_BKHP = scale * v_BKHP
    h = _states(k_BKHN, written_BKHP, decay_BKH)

    # gradient of the states: each receives from its output and from the state after it
    from_output = (q_BKHN.unsqueeze(-1) * g_BKHP.unsqueeze(-2)).unbind(1)
    grads = [torch.zeros_like(from_output[0])]
    ahead = [torch.zeros_like(decay_BKH[:, 0]), *decay_BKH.unbind(1)[:0:-1]]
    for direct, decay in zip(from_output[::-1], ahead, strict=True):
        grads.append(direct + decay[..., None, None] * grads[-1])
    gh = torch.stack(grads[:0:-1], 1)

    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    grad_decay = (gh * before).sum((-2, -1)) * decay_BKH * gap_scale(x.gap, gh.dtype)
    grad_written = (gh * k_BKHN.unsqueeze(-1)).sum(-2)
    grad_scale, grad_diagonal = (grad_written * v_BKHP).sum(-1), (g_BKHP * v_BKHP).sum(-1)
    return (
        scattered(_sum_heads((h * g_BKHP.unsqueeze(-2)).sum(-1), x.q), visit, x.q),
        scattered(_sum_heads((gh * written_BKHP.unsqueeze(-2)).sum(-1), x.k), visit, x.k),
        scattered(scale * grad_written + diagonal * g_BKHP, visit, x.v),
        scattered(grad_decay, visit, x.log_decay),
        None if x.scale is None else scattered(grad_scale, visit, x.scale),
        None if x.diagonal is None else scattered(grad_diagonal, visit, x.diagonal),
    )


def gathered_one(x: Tensor, visit: Tensor | None) -> Tensor:
    """x (B, L, ...) at the visited positions, (B, K, ...), in the dtype of the state."""
    rows = take(x.flatten(2), visit)
    return rows.view(*rows.shape[:2], *x.shape[2:])


def gathered(x: SSDInputs, visit: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k of every head (B, K, H, N), v (B, K, H, P) and decays (B, K, H) along the visits."""
    per_group = x.v.shape[2] // x.q.shape[2]
    q, k = (gathered_one(t, visit).repeat_interleave(per_group, 2) for t in (x.q, x.k))
    v, log_decay = gathered_one(x.v, visit), gathered_one(x.log_decay, visit)
    return q, k, v, torch.exp(log_decay * gap_scale(x.gap, log_decay.dtype))


def gathered_terms(x: SSDInputs, visit: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
    """scale and diagonal along the visits, (B, K, H, 1); 1 and 0 where there are none."""
    scale, diagonal = (
        None if t is None else gathered_one(t, visit).unsqueeze(-1) for t in (x.scale, x.diagonal)
    )
    return 1.0 if scale is None else scale, 0.0 if diagonal is None else diagonal


def scattered(x: Tensor, visit: Tensor | None, like: Tensor) -> Tensor:
    """The inverse of gathered_one: shape and dtype of `like`, zero where nothing was visited."""
    return put(x.flatten(2), visit, like.flatten(2)).view(like.shape)


def _sum_heads(x_BKHN: Tensor, like: Tensor) -> Tensor:
    return x_BKHN.unflatten(2, (like.shape[2], -1)).sum(3)


def _states(k_BKHN: Tensor, v_BKHP: Tensor, decay_BKH: Tensor) -> Tensor:
    """States of every visit, (B, K, H, N, P)."""
    inputs = k_BKHN.unsqueeze(-1) * v_BKHP.unsqueeze(-2)
    states = [torch.zeros_like(inputs[:, 0])]
    for decay, inner in zip(decay_BKH.unbind(1), inputs.unbind(1), strict=True):
        states.append(decay[..., None, None] * states[-1] + inner)
    return torch.stack(states[1:], 1)
