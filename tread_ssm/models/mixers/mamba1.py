"""The Mamba-1 mixer (Gu and Dao, arXiv 2312.00752), along any order.

Shape legend: B batch, L tokens of the stream (prefix and whatever image tokens are present),
D channels, E inner channels (expand * D), R rank of the step size, S d_state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.mixers.mixer import BaseMixerConfig, Mixer, check_range, init_step_bias
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class Mamba1Config(BaseMixerConfig):
    """One selective scan in one direction.

    Attributes:
        d_state: States of each inner channel, 1 to 64.
        d_conv: Taps of the causal convolution, 2 to 4. DiM has 3, Mamba and ZigMa have 4.
        expand: Inner channels, in multiples of the stream's.
        gap_decay: The carried state also decays over the missing tokens of a routed stream.
        true_distance_conv: The convolution's taps reach back along the full order and read zero
            where a token is missing. Otherwise they reach back along the tokens that are there.
    """

    kind: Literal["mamba1"] = "mamba1"
    d_state: int = 16
    d_conv: int = 3
    expand: int = 2
    gap_decay: bool = False
    true_distance_conv: bool = False

    def __post_init__(self) -> None:
        check_range("Mamba1Config: d_state", self.d_state, 1, 64)
        check_range("Mamba1Config: d_conv", self.d_conv, 2, 4)
        check_range("Mamba1Config: expand", self.expand, 1)

    def build(self, dim: int, order: OrderName) -> Mamba1:
        """The mixer of a stream of `dim` channels that scans along `order`."""
        return Mamba1(self, dim, order)


class Mamba1(Mixer):
    """x_BLD -> x_BLD by one selective scan along one order.

    The kernels get the visiting order and read and write in place of a permutation. Parameters
    are named and shaped as in the usual Mamba-1 checkpoints.
    """

    def __init__(self, config: Mamba1Config, dim: int, order: OrderName) -> None:
        super().__init__()
        inner, self.dt_rank = config.expand * dim, math.ceil(dim / 16)
        self.config, self.order = config, order
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        # Holds the parameters only.
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, config.d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set A = -(1..S), D = 1, and the step bias."""
        states = torch.arange(1, self.config.d_state + 1, device=self.A_log.device)
        self.A_log.copy_(states.to(self.A_log.dtype).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        init_step_bias(self.dt_proj.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        c, visits = self.config, layout.visits(self.order)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv(
            u,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            visits.index,
            visits.gap if c.true_distance_conv else None,
        )
        dt, B, C = self.x_proj(u).split([self.dt_rank, c.d_state, c.d_state], dim=-1)
        y = selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,  # added, with the softplus, inside the scan in full precision
            order=visits.index,
            gap=visits.gap if c.gap_decay else None,
        )
        return self.out_proj(y)
