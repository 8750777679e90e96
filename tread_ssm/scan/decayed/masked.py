"""Two directions of the decayed product as one product with a mask: plain torch.

    y = (sum over directions of M (q k^T) scale) v,    M_ij = exp(c_i - c_j) where i is not before j

A direction is a mask over pairs of positions, made from ranks and sums of log decays along its
order. No input is brought into another order, and v is multiplied once. Where both directions have
the same q and k, so are these. Nothing but the inputs is kept for the backward, which makes the
masks again; it is written out.

Shape legend: B batch, L positions, K visits, G groups, R heads of a group, N states, P channels of
a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tread_ssm.scan.decayed.matmul import of_steps_between
from tread_ssm.scan.decayed.reference import gathered_one, scattered
from tread_ssm.scan.inputs import BothInputs, Gradients, wide_dtype
from tread_ssm.scan.visits import gap_scale, visited_positions

LONGEST = 64
"""Most positions for which one masked product takes the place of two chunked ones.

With shared q and k, on one CPU thread, they cross at about 90 (benchmarks/results/ssd_cpu.md)."""


@dataclass(frozen=True)
class _Way:
    """One direction; tensors with two positions i, j have them last."""

    q: Tensor  # (B, G, L, N)
    k: Tensor  # (B, G, L, N)
    scores: Tensor  # (B, G, 1, L, L), q k^T
    mask: Tensor  # (B, G, R, L, L), M
    scale: Tensor | float  # (B, G, R, 1, L)
    visit: Tensor | None  # (B, K)
    stretch: Tensor | float  # (1 or B, K, 1), 1 + gap

    def weights(self) -> Tensor:
        """What each position reads of each other one, (B, G, R, L, L)."""
        return self.mask * self.scores * self.scale


def both_forward(x: BothInputs) -> Tensor:
    """y (B, L, H, P) in v's dtype."""
    there, back = _ways(x)
    weights = there.weights().add_(back.weights())
    y = weights @ _heads_first(x.v, x)
    return y.flatten(1, 2).transpose(1, 2).to(x.v.dtype).contiguous()


def both_backward(grad_y: Tensor, x: BothInputs) -> Gradients:
    """Gradients of all floating inputs."""
    ways = there, back = _ways(x)
    g, v = _heads_first(grad_y, x), _heads_first(x.v, x)
    grad_weights = g @ v.mT
    grad_v = there.weights().add_(back.weights()).mT @ g
    of_scores, of_masks, of_scales = zip(*(_of(way, grad_weights) for way in ways), strict=True)
    if x.back_q is None:
        of_scores = (of_scores[0] + of_scores[1],)
    grads_q, grads_k = [], []
    for way, of in zip(ways, of_scores, strict=False):
        grads_q.append((of @ way.k).transpose(1, 2).to(x.q.dtype).contiguous())
        grads_k.append((of.mT @ way.q).transpose(1, 2).to(x.k.dtype).contiguous())
    logs = [scattered(of, way.visit, x.log_decay) for of, way in zip(of_masks, ways, strict=True)]
    logs = logs if x.back_log_decay is not None else [logs[0] + logs[1]]
    scales: list[Tensor | None] = [of.contiguous() for of in of_scales]
    if x.scale is None:
        scales = [None, None]
    elif x.back_scale is None:
        scales = [of_scales[0] + of_scales[1], None]
    grad_v = grad_v.flatten(1, 2).transpose(1, 2).to(x.v.dtype).contiguous()
    (gq, *back_q), (gk, *back_k), (glog, *back_log) = grads_q, grads_k, logs
    none = [None]
    return (
        gq, gk, grad_v, glog, scales[0],
        *(back_q or none), *(back_k or none), *(back_log or none), scales[1],
    )  # fmt: skip


def _of(way: _Way, grad_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a direction's scores (B, G, L, L), of its log decays at the visits (B, K, H),
    and of its scale (B, L, H)."""
    masked = grad_weights * way.mask
    of_scores = (masked * way.scale).sum(2)
    pairs = masked.mul_(way.scores)
    of_scale = pairs.sum(-2).flatten(1, 2).transpose(1, 2)
    pairs = pairs * way.scale
    if way.visit is not None:
        visit = way.visit[:, None, None]
        pairs = pairs.gather(-2, visit.unsqueeze(-1).expand(*pairs.shape[:3], -1, pairs.shape[-1]))
        pairs = pairs.gather(-1, visit.unsqueeze(-2).expand(*pairs.shape[:4], -1))
    of_mask = of_steps_between(pairs).flatten(1, 2).transpose(1, 2) * way.stretch
    return of_scores, of_mask, of_scale


def _ways(x: BothInputs) -> tuple[_Way, _Way]:
    there = _way(x, x.q, x.k, x.log_decay, x.scale, x.order, x.gap)
    return there, _way(
        x,
        x.back_q,
        x.back_k,
        x.log_decay if x.back_log_decay is None else x.back_log_decay,
        x.scale if x.back_scale is None else x.back_scale,
        x.back_order,
        x.back_gap,
        there,
    )


def _way(
    x: BothInputs,
    q: Tensor | None,
    k: Tensor | None,
    log_decay: Tensor,
    scale: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    like: _Way | None = None,
) -> _Way:
    """One direction; q and k are those of `like` where they are None."""
    wide, groups = wide_dtype(x.v.dtype), x.q.shape[2]
    if q is not None and k is not None:
        q, k = (t.to(wide).transpose(1, 2) for t in (q, k))
        scores = (q @ k.mT).unsqueeze(2)
    else:
        assert like is not None
        q, k, scores = like.q, like.k, like.scores
    visit = visited_positions(order, x.v)
    stretch = gap_scale(gap, log_decay.dtype)
    mask = _mask(gathered_one(log_decay, visit) * stretch, visit, x.v.shape[1])
    mask = mask.unflatten(1, (groups, -1))
    if scale is not None:
        scale = scale.transpose(1, 2).unflatten(1, (groups, -1)).unsqueeze(-2)
    return _Way(q, k, scores, mask, 1.0 if scale is None else scale, visit, stretch)


def _mask(steps_BKH: Tensor, visit: Tensor | None, length: int) -> Tensor:
    """M of the log decays along the visits, (B, H, L, L); 0 where i or j is not visited."""
    batch, visits, heads = steps_BKH.shape
    exact = steps_BKH.double().clamp(min=-1e4).cumsum(1)  # the floor is zero, and sums stay exact
    rank = torch.arange(visits, device=exact.device).expand(batch, -1)
    if visit is not None:
        at = visit.unsqueeze(-1).expand(-1, -1, heads)
        exact = exact.new_zeros(batch, length, heads).scatter(1, at, exact)
        rank = rank.new_full((batch, length), length).scatter(1, visit, rank)
    high = exact.to(steps_BKH.dtype)
    low = (exact - high).to(high.dtype)  # the difference of two long sums must be exact
    high, low = (t.transpose(1, 2).unsqueeze(-1) for t in (high, low))
    exponent = (high - high.mT).add_(low).sub_(low.mT)
    i, j = rank[:, None, :, None], rank[:, None, None, :]
    return exponent.masked_fill_((i < j) | (i == length), -torch.inf).exp_()


def _heads_first(v: Tensor, x: BothInputs) -> Tensor:
    """v (B, L, H, P) -> (B, G, R, L, P), in the dtype of sums."""
    return v.to(wide_dtype(v.dtype)).transpose(1, 2).unflatten(1, (x.q.shape[2], -1))
