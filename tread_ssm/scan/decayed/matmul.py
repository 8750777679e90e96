"""The decayed product as matrix products in plain torch, with its backward written out.

Visits are cut into chunks. Inside a chunk, y = (q k^T masked and decayed) v; across chunks a state
(N, P) per head is carried (Mamba-2, arXiv 2405.21060, section 6). A short sequence is one chunk:
one masked product. The forward keeps the state before each chunk; the backward recomputes the rest.

Decays are exp(c_i - c_j) with i not before j, never a quotient of exponentials: that overflows.

Shape legend: B batch, C chunks, G groups, T visits of a chunk, R heads of a group, N states,
P channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.decayed.reference import gathered_one, scattered
from tread_ssm.scan.inputs import Gradients, SSDInputs
from tread_ssm.scan.visits import gap_scale, n_visits, visited_positions

FAST_ON = ()
FUSES_TERMS = False

CHUNK = 64
"""Most visits of a chunk. On a CPU, at 64 to 366 visits, 32 is as fast and 128 half as fast."""


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot run there, or None."""
    return "MPS has no float64, in which log decays are summed" if device.type == "mps" else None


def ssd_states_shape(x: SSDInputs) -> tuple[int, ...]:
    """(B, C - 1, G, N, R * P): the state before each chunk but the first, which starts at zero."""
    visits = n_visits(x.v, x.order)
    groups, states = x.q.shape[2:]
    batch, _, heads, channels = x.v.shape
    chunks = -(-visits // _chunk_length(visits))
    return (batch, chunks - 1, groups, states, heads // groups * channels)


def ssd_forward(x: SSDInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in v's dtype, and the states before the chunks."""
    visit = visited_positions(x.order, x.v)
    t = _in_chunks(x, visit)
    y = _heads_first(t.decays().mul_(t.scores()) @ _heads_first(t.v))
    befores = t.v.new_empty(ssd_states_shape(x))
    if befores.numel():
        added = t.k[:, :-1].mT @ (t.v * t.to_end)[:, :-1].flatten(4)
        h = torch.zeros_like(added[:, 0])
        for kept, decay, new in zip(
            befores.unbind(1), t.whole.unbind(1), added.unbind(1), strict=False
        ):
            h = decay * h + new
            kept.copy_(h)
        y[:, 1:] += (t.q[:, 1:] @ befores).view_as(t.v[:, 1:]) * t.from_start[:, 1:]
    return scattered(t.visits(y), visit, x.v), befores


def ssd_backward(grad_y: Tensor, x: SSDInputs, states: Tensor) -> Gradients:
    """Gradients of q, k, v and log_decay, from the states that the forward kept, and two None."""
    visit = visited_positions(x.order, x.v)
    t = _in_chunks(x, visit)
    g = t.chunks(gathered_one(grad_y, visit).view(*t.shape))
    decays = t.decays()
    grad_scores = _heads_first(g) @ _heads_first(t.v).mT
    scores = decays * t.scores()
    grad_v = _heads_first(scores.mT @ _heads_first(g))
    grad_decay = _heads_first(of_steps_between(scores.mul_(grad_scores)).unsqueeze(-1))
    grad_scores = grad_scores.mul_(decays).sum(3)
    grad_q = grad_scores @ t.k
    grad_k = grad_scores.mT @ t.q
    if states.numel():
        g_start, v_end = g[:, 1:] * t.from_start[:, 1:], t.v[:, :-1] * t.to_end[:, :-1]
        after = _states_after(t.q[:, 1:].mT @ g_start.flatten(4), t.whole)
        grad_q[:, 1:] += g_start.flatten(4) @ states.mT
        grad_k[:, :-1] += v_end.flatten(4) @ after.mT
        read = (t.k[:, :-1] @ after).view_as(v_end)
        grad_v[:, :-1] += read * t.to_end[:, :-1]
        # A step's decay lies between: the state and the visits from it on, the visits before it
        # and the states after, and between the states.
        grad_decay[:, 1:] += _from_each_on(
            ((t.q[:, 1:] @ states).view_as(g_start) * g_start).sum(-1, keepdim=True)
        )
        grad_decay[:, :-1, :, 1:] += (read * v_end).sum(-1, keepdim=True).cumsum(3)[:, :, :, :-1]
        through = (after[:, 1:] * states[:, :-1]).sum(3, keepdim=True) * t.whole[:, 1:-1]
        grad_decay[:, 1:-1] += through.unflatten(-1, g.shape[-2:]).sum(-1, keepdim=True)
    grad_decay = t.visits(grad_decay).flatten(2) * gap_scale(x.gap, g.dtype)
    return (
        scattered(t.visits(grad_q), visit, x.q),
        scattered(t.visits(grad_k), visit, x.k),
        scattered(t.visits(grad_v), visit, x.v),
        scattered(grad_decay, visit, x.log_decay),
        None,
        None,
    )


@dataclass(frozen=True)
class _Chunks:
    """Inputs in visiting order, cut into chunks, padded with visits that add and change nothing."""

    q: Tensor  # (B, C, G, T, N)
    k: Tensor  # (B, C, G, T, N)
    v: Tensor  # (B, C, G, T, R, P)
    high: Tensor  # (B, C, G, T, R, 1), the sum of log decays from the chunk's start on, and
    low: Tensor  # what its rounding lost: the difference of two long sums must be exact
    shape: tuple[int, int, int, int, int]  # (B, K, G, R, P)

    def scores(self) -> Tensor:
        """q k^T, (B, C, G, 1, T, T)."""
        return (self.q @ self.k.mT).unsqueeze(3)

    def decays(self) -> Tensor:
        """exp(c_i - c_j) where i is not before j, else 0: (B, C, G, R, T, T)."""
        high, low = _heads_first(self.high), _heads_first(self.low)
        exponent = (high - high.mT).add_(low).sub_(low.mT)
        steps = exponent.shape[-1]
        earlier = torch.ones(steps, steps, dtype=torch.bool, device=high.device).triu_(1)
        return exponent.masked_fill_(earlier, -torch.inf).exp_()

    @property
    def from_start(self) -> Tensor:
        """Decay of the state before the chunk until each visit, (B, C, G, T, R, 1)."""
        return self.high.exp()

    @property
    def to_end(self) -> Tensor:
        """Decay of each visit's input until the chunk's end, (B, C, G, T, R, 1)."""
        high, low = self.high[:, :, :, -1:], self.low[:, :, :, -1:]
        return (high - self.high + (low - self.low)).exp_()

    @property
    def whole(self) -> Tensor:
        """Decay over a chunk, (B, C, G, 1, R * P)."""
        last = self.high[:, :, :, -1].exp()
        return last.expand(*last.shape[:-1], self.v.shape[-1]).flatten(3).unsqueeze(3)

    def chunks(self, x: Tensor) -> Tensor:
        """(B, K, G, ...) -> (B, C, G, T, ...)."""
        return _chunks(x, self.q.shape[3])

    def visits(self, x: Tensor) -> Tensor:
        """(B, C, G, T, ...) -> (B, K, G, ...)."""
        return x.transpose(2, 3).flatten(1, 2)[:, : self.shape[1]]


def _in_chunks(x: SSDInputs, visit: Tensor | None) -> _Chunks:
    x.refuse_terms("decayed.matmul")
    q, k, v, log_decay = (gathered_one(t, visit) for t in x[:4])
    batch, visits, groups, _ = q.shape
    shape = (batch, visits, groups, v.shape[2] // groups, v.shape[3])
    steps = _chunk_length(visits)
    log_decay = (log_decay * gap_scale(x.gap, log_decay.dtype)).double().view(*shape[:4], 1)
    log_decay = log_decay.clamp_(min=-1e4)  # is zero as well, and sums stay exact
    exact = _chunks(log_decay, steps).cumsum(3)
    high = exact.to(v.dtype)
    low = (exact - high).to(v.dtype)
    q, k, v = (_chunks(t, steps) for t in (q, k, v.view(shape)))
    return _Chunks(q, k, v, high, low, shape)


def _chunk_length(visits: int) -> int:
    """Chunks of equal length, so that little is padded; up to CHUNK visits are one chunk."""
    return -(-visits // -(-visits // CHUNK))


def _chunks(x: Tensor, steps: int) -> Tensor:
    missing = -x.shape[1] % steps
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unflatten(1, (-1, steps)).transpose(2, 3)


def _heads_first(x: Tensor) -> Tensor:
    """(B, C, G, T, R, P) <-> (B, C, G, R, T, P)."""
    return x.transpose(3, 4)


def _states_after(from_outputs: Tensor, whole: Tensor) -> Tensor:
    """Gradient of the state after each chunk but the last, (B, C - 1, G, N, R * P).

    from_outputs: what the outputs of the chunk behind it contribute.
    """
    after = from_outputs.clone()
    for c in reversed(range(after.shape[1] - 1)):
        after[:, c] += whole[:, c + 1] * after[:, c + 1]
    return after


def of_steps_between(pairs: Tensor) -> Tensor:
    """Sums over pairs (i, j) of visits with j before a step and i not, per step: (..., T, T) ->
    (..., T). Never a difference of sums: strong decays would drown in its rounding."""
    until = pairs.cumsum(-1)[..., :-1].tril(-1).sum(-2)
    return F.pad(until, (1, 0))


def _from_each_on(x: Tensor) -> Tensor:
    """Sum over the visits from each one to the chunk's end, along T."""
    return x.flip(3).cumsum(3).flip(3)
