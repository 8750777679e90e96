"""The Mamba-2 mixer (Dao and Gu, arXiv 2405.21060), along any order.

Shape legend: B batch, L tokens of the stream (prefix and whatever image tokens are present),
D channels, E inner channels (expand * D), H heads of P channels, G groups of heads, N d_state.

A token that is missing from a routed stream is exactly absent: a scan over the kept tokens equals
the full scan in which the missing ones have a step of zero, but for the convolution, which reads
the kept predecessors instead (see true_distance_conv).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.mixers.mixer import (
    BaseMixerConfig,
    GatedRMSNorm,
    Mixer,
    SplitLinear,
    check_range,
    check_ways,
    count_heads,
    init_step_bias,
)
from tread_ssm.scan import Direction, causal_conv, gated_norm, ssd, ssd_both_ways
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(BaseMixerConfig):
    """One scan in one direction with one decay a head.

    Attributes:
        d_state: States of each channel of a head.
        d_conv: Taps of the causal convolution over x, B and C, 2 to 4.
        expand: Inner channels, in multiples of the stream's.
        head_dim: Channels of a head; it divides the inner channels.
        groups: Groups of heads that share B and C.
        norm: RMSNorm of the gated output, in `groups` parts.
        bidirectional: The products forward and backward along the order are summed; the prefix
            comes first in both. The convolution goes forward.
        own_backward: The way back has B, C, step sizes and decays of its own. Otherwise both ways
            share all parameters.
        gap_decay: The carried state also decays over the missing tokens of a routed stream.
        true_distance_conv: The convolution's taps reach back along the full order and read zero
            where a token is missing. Otherwise they reach back along the tokens that are there.
    """

    kind: Literal["mamba2"] = "mamba2"
    d_state: int = 128
    d_conv: int = 4
    expand: int = 2
    head_dim: int = 64
    groups: int = 1
    norm: bool = True
    bidirectional: bool = False
    own_backward: bool = False
    gap_decay: bool = False
    true_distance_conv: bool = False

    def __post_init__(self) -> None:
        for name in ("d_state", "expand", "head_dim", "groups"):
            check_range(f"Mamba2Config: {name}", getattr(self, name), 1)
        check_range("Mamba2Config: d_conv", self.d_conv, 2, 4)
        check_ways("Mamba2Config", self.bidirectional, self.own_backward)

    def check(self, dim: int) -> None:
        """Raise ValueError where heads or groups do not divide the inner channels."""
        count_heads("Mamba2Config", self.expand * dim, self.head_dim, self.groups)

    def build(self, dim: int, order: OrderName) -> Mamba2:
        """The mixer of a stream of `dim` channels that scans along `order`."""
        return Mamba2(self, dim, order)


class Mamba2(Mixer):
    """x_BLD -> x_BLD by one decayed product along one order.

    Per head, with a state h_NP, A < 0 and t running over the visits:

        dt_t = softplus(dt_t + dt_bias),  h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t^T
        y_t = C_t h_t + D x_t,            out_t = W RMSNorm(y_t * SiLU(z_t))

    x, B and C have passed one causal convolution and SiLU. Parameters are named and shaped as in
    the usual Mamba-2 checkpoints; those of an own way back stand behind those of the way there.
    """

    def __init__(self, config: Mamba2Config, dim: int, order: OrderName) -> None:
        super().__init__()
        inner, states = config.expand * dim, config.groups * config.d_state
        self.heads = count_heads("Mamba2Config", inner, config.head_dim, config.groups)
        ways = 2 if config.own_backward else 1
        self.config, self.order, self.sizes = config, order, (inner, *(2 * ways * (states,)))
        mixed, rates = sum(self.sizes), ways * self.heads
        self.in_proj = SplitLinear(dim, (inner, mixed, rates))
        # Holds the parameters only.
        self.conv1d = nn.Conv1d(mixed, mixed, config.d_conv, groups=mixed)
        self.dt_bias = nn.Parameter(torch.empty(rates))
        self.A_log = nn.Parameter(torch.empty(rates))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = GatedRMSNorm(inner, config.groups) if config.norm else gated_norm
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set the step bias, A uniform in [-16, -1], and D = 1."""
        init_step_bias(self.dt_bias)
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
        self.D.fill_(1.0)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        c, visits = self.config, layout.visits(self.order)
        z, mixed, dt = self.in_proj(x)
        mixed = causal_conv(
            mixed,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            visits.index,
            visits.gap if c.true_distance_conv else None,
        )
        u, *states = mixed.split(self.sizes, dim=-1)
        B, C, *_ = states = [t.unflatten(-1, (c.groups, c.d_state)) for t in states]
        u_BLHP = u.unflatten(-1, (self.heads, c.head_dim))
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        steps, log_decays = ((t.split(self.heads, -1)) for t in (dt, dt * -torch.exp(self.A_log)))
        D_BLH = self.D.expand_as(steps[0])
        gap = visits.gap if c.gap_decay else None
        there = Direction(C, B, log_decays[0], visits.index, gap, steps[0])
        if c.bidirectional:
            visits = layout.backward(self.order, x.device)
            gap = visits.gap if c.gap_decay else None
            B, C = states[-2:]
            back = Direction(C, B, log_decays[-1], visits.index, gap, steps[-1])
            y_BLHP = ssd_both_ways(u_BLHP, there, back, D_BLH)
        else:
            y_BLHP = ssd(there.q, there.k, u_BLHP, *there[2:], D_BLH)
        return self.out_proj(self.norm(y_BLHP.flatten(2), z))
