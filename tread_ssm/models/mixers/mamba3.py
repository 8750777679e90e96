"""The Mamba-3 mixer with one input and one output a head (SISO; arXiv 2603.15569), along any order.

Shape legend: B batch, L tokens of the stream (prefix and whatever image tokens are present),
D channels, E inner channels (expand * D), H heads of P channels, G groups of heads, N d_state,
S angles.

A token that is missing from a routed stream gives its place to its predecessor: the mixer over the
kept tokens is the recurrence over just these, so that the trapezoid of a kept token reads the kept
token before it, however far away that is (see true_distance). A step of zero at a missing token is
not the same, because the next token's trapezoid would still read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.mixers.mixer import (
    BaseMixerConfig,
    GroupedRMSNorm,
    Mixer,
    SplitLinear,
    check_range,
    check_ways,
    count_heads,
    init_step_bias,
    turned,
)
from tread_ssm.scan import Direction, gated_norm, ssd, ssd_both_ways
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout, Visits


@dataclass(frozen=True, kw_only=True)
class Mamba3Config(BaseMixerConfig):
    """One scan in one direction with decays that depend on the input, trapezoids and rotations.

    Attributes:
        d_state: States of each channel of a head.
        expand: Inner channels, in multiples of the stream's.
        head_dim: Channels of a head; it divides the inner channels.
        groups: Groups of heads that share B and C before their biases.
        decay: How a decay is made of its input x: "softplus" as released; "heavy_tail" is 1 + x
            for x >= 0 and 1 / (1 - x) below.
        decay_floor: Smallest decay rate.
        rope_fraction: Share of the states that turn by the angles, in pairs; 0: none.
        norm: RMSNorm of each head's output before the gate.
        bidirectional: The recurrences forward and backward along the order are summed; the prefix
            comes first in both.
        own_backward: The way back has B, C, step sizes, decays, trapezoids and angles of its own.
            Otherwise both ways share all parameters.
        gap_decay: The carried state also decays over the missing tokens of a routed stream.
        true_distance: A token whose predecessor along the full order is missing reads no
            predecessor (lambda = 1), as a true-distance convolution reads zero there.
    """

    kind: Literal["mamba3"] = "mamba3"
    d_state: int = 128
    expand: int = 2
    head_dim: int = 64
    groups: int = 1
    decay: Literal["heavy_tail", "softplus"] = "heavy_tail"
    decay_floor: float = 1e-4
    rope_fraction: float = 0.5
    norm: bool = False
    bidirectional: bool = False
    own_backward: bool = False
    gap_decay: bool = False
    true_distance: bool = False

    def __post_init__(self) -> None:
        for name in ("d_state", "expand", "head_dim", "groups"):
            check_range(f"Mamba3Config: {name}", getattr(self, name), 1)
        check_ways("Mamba3Config", self.bidirectional, self.own_backward)
        if self.decay not in ("heavy_tail", "softplus"):
            raise ValueError(
                f"Mamba3Config: decay is {self.decay!r}; use 'heavy_tail' or 'softplus'."
            )
        if not 0 <= self.decay_floor < math.inf:
            raise ValueError(
                f"Mamba3Config: decay_floor is {self.decay_floor}; it must be at least 0."
            )
        pairs = self.d_state * self.rope_fraction / 2
        if not 0 <= self.rope_fraction <= 1 or pairs != int(pairs):
            raise ValueError(
                f"Mamba3Config: rope_fraction is {self.rope_fraction}; it must lie in 0..1, and "
                f"rope_fraction * d_state = {2 * pairs} must be an even number of states."
            )

    @property
    def angles(self) -> int:
        """S, pairs of states that turn."""
        return int(self.d_state * self.rope_fraction / 2)

    def check(self, dim: int) -> None:
        """Raise ValueError where heads or groups do not divide the inner channels."""
        count_heads("Mamba3Config", self.expand * dim, self.head_dim, self.groups)

    def build(self, dim: int, order: OrderName) -> Mamba3:
        """The mixer of a stream of `dim` channels that scans along `order`."""
        return Mamba3(self, dim, order)


class _Scan(NamedTuple):
    """What the recurrence computes from beside x, before any order comes in."""

    q: Tensor  # (B, L, H, N), not turned
    k: Tensor  # (B, L, H, N), not turned
    dt: Tensor  # (B, L, H)
    log_decay: Tensor  # (B, L, H), dt A
    back: Tensor  # (B, L, H), (1 - lambda) dt
    angle: Tensor  # (B, L, S)


class Mamba3(Mixer):
    """x_BLD -> x_BLD by one decayed product along one order.

    Per head, with a state h_NP, A < 0 and t running over the visits:

        theta_t = theta_(t-1) + pi tanh(angle_t) dt_t
        k_t, q_t = the normed B_t and C_t plus biases, their pairs turned by theta_t
        h_t = a_t h_(t-1) + (1 - lambda_t) dt_t a_t k_(t-1) x_(t-1)^T + lambda_t dt_t k_t x_t^T
        y_t = q_t h_t + D x_t,  out_t = W (y_t * SiLU(z_t)),  a_t = exp(dt_t A_t)

    The middle term is moved to the token that it reads, which leaves one decayed product and a
    correction of its diagonal. Nothing comes before the first visit. Parameters of an own way back
    stand behind those of the way there.
    """

    def __init__(self, config: Mamba3Config, dim: int, order: OrderName) -> None:
        super().__init__()
        inner, states = config.expand * dim, config.groups * config.d_state
        heads = count_heads("Mamba3Config", inner, config.head_dim, config.groups)
        self.config, self.order, self.heads = config, order, heads
        ways = 2 if config.own_backward else 1
        of_each = (states, states, heads, heads, heads, config.angles)
        self.sizes = (inner, inner, *(ways * size for size in of_each))
        self.in_proj = SplitLinear(dim, self.sizes)
        self.dt_bias = nn.Parameter(torch.empty(ways * heads))
        self.B_bias = nn.Parameter(torch.empty(ways * heads, config.d_state))
        self.C_bias = nn.Parameter(torch.empty(ways * heads, config.d_state))
        self.B_norm = nn.RMSNorm(config.d_state, eps=1e-5)
        self.C_norm = nn.RMSNorm(config.d_state, eps=1e-5)
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GroupedRMSNorm(inner, heads) if config.norm else nn.Identity()
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the step bias, and ones for the biases of B and C and for D."""
        init_step_bias(self.dt_bias)
        for weight in (self.B_bias, self.C_bias, self.D):
            weight.fill_(1.0)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        c, wide = self.config, self.dt_bias.dtype
        z, u, B, C, *small = self.in_proj(x)
        dt, rate, trapezoid, angle = (t.to(wide) for t in small)
        dt = F.softplus(dt + self.dt_bias)
        u_BLHP = u.unflatten(-1, (self.heads, c.head_dim))
        scan = _Scan(
            self._heads(self.C_norm, C.to(wide)) + self.C_bias,
            self._heads(self.B_norm, B.to(wide)) + self.B_bias,
            dt,
            -dt * decay_rate(rate, c.decay).clamp(min=c.decay_floor),
            dt * torch.sigmoid(-trapezoid),
            angle,
        )
        first = last = scan
        if c.own_backward:
            halves = [t.chunk(2, dim=2) for t in scan]
            first, last = (_Scan(*(half[way] for half in halves)) for way in range(2))
        there, diagonal = self._direction(first, layout.visits(self.order), u.dtype)
        if c.bidirectional:
            back, more = self._direction(last, layout.backward(self.order, x.device), u.dtype)
            y_BLHP = ssd_both_ways(u_BLHP, there, back, self.D + diagonal + more)
        else:
            y_BLHP = ssd(there.q, there.k, u_BLHP, *there[2:], self.D + diagonal)
        return self.out_proj(gated_norm(self.norm(y_BLHP.flatten(2)), z))

    def _direction(
        self, scan: _Scan, visits: Visits, dtype: torch.dtype
    ) -> tuple[Direction, Tensor]:
        """q_t h_t as one product, and what corrects its diagonal (B, L, H)."""
        theta, back, following = self._along(visits, scan)
        direction = Direction(
            turned(scan.q, theta).to(dtype),
            turned(scan.k, theta).to(dtype),
            scan.log_decay,
            visits.index,
            visits.gap if self.config.gap_decay else None,
            scan.dt - back + following,
        )
        # q and k are turned alike, and so have the same product.
        return direction, -(scan.q * scan.k).sum(-1) * following

    def _along(self, visits: Visits, scan: _Scan) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on the order: theta_BLHS, `back` of each token, and `back` of the token
        visited after it, 0 behind the last, (B, L, H)."""
        heads, angles = self.heads, self.config.angles
        small = visits.take(torch.cat([scan.dt, scan.back, scan.angle], dim=-1))
        dt, back, angle = small.split([heads, heads, angles], dim=-1)
        if self.config.true_distance and visits.gap is not None:
            back = back.masked_fill((visits.gap > 0).unsqueeze(-1), 0.0)
        theta = (dt.unsqueeze(-1) * (math.pi * torch.tanh(angle)).unsqueeze(-2)).cumsum(1)
        following = F.pad(back[:, 1:], (0, 0, 0, 1))
        every = visits.put(torch.cat([back, following, theta.flatten(2)], dim=-1))
        back, following, theta = every.split([heads, heads, heads * angles], dim=-1)
        return theta.unflatten(-1, (heads, angles)), back, following

    def _heads(self, norm: nn.Module, x: Tensor) -> Tensor:
        """x_BL(GN), normed, for every head: (B, L, H, N); twice G and H with an own way back."""
        parts = x.unflatten(-1, (-1, self.config.d_state))
        return norm(parts).repeat_interleave(self.heads // self.config.groups, dim=2)


def decay_rate(x: Tensor, decay: Literal["heavy_tail", "softplus"]) -> Tensor:
    """-A of its input; both are positive and grow with x."""
    if decay == "softplus":
        return F.softplus(x)
    return torch.where(x >= 0, 1 + x, 1 / (1 - x.clamp(max=0)))
