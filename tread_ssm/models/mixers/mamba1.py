"""The Mamba-1 mixer that scans along any order, and DiM's block around it.

Shape legend: B batch, N tokens of the grid, L tokens of the stream (prefix and whatever image
tokens are present), D channels, E inner channels (expand * D), R rank of the step size,
S d_state.

Sources: Mamba (Gu and Dao, arXiv 2312.00752); DiM (Teng et al., arXiv 2405.14224).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.embed import WithTables
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.order import OrderName, rank_table
from tread_ssm.tokens import Layout


def check_mixer(name: str, d_state: int, d_conv: int, expand: int) -> None:
    """Refuse what the scan kernels cannot do. Raises ValueError."""
    for field, value, least, most in (
        ("d_state", d_state, 1, 64),
        ("d_conv", d_conv, 2, 4),
        ("expand", expand, 1, None),
    ):
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"in {least}..{most}"
            raise ValueError(f"{name}: {field} is {value}; it must be {limits}.")


class MambaMixer(WithTables):
    """x_BLD -> x_BLD by one selective scan along one order.

    The stream stays in raster order: the kernels get the visiting order and read and write in
    place of a permutation. Parameters are named and shaped as in the usual Mamba-1 checkpoints.

    grid:   (rows, columns) of the full grid, padding included.
    order:  how a dense grid is visited; a routed stream is visited in the same order restricted
            to the tokens that are there.
    gap_decay:          the carried state also decays over the missing tokens.
    true_distance_conv: the convolution's taps reach back along the full order and read zero
                        where a token is missing.
    """

    rank: Tensor

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        order: OrderName,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        gap_decay: bool = False,
        true_distance_conv: bool = False,
    ) -> None:
        super().__init__()
        inner, self.dt_rank, self.d_state = expand * dim, math.ceil(dim / 16), d_state
        self.grid, self.order = grid, order
        self.gap_decay, self.true_distance_conv = gap_decay, true_distance_conv
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)  # holds the parameters only
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        return {"rank": rank_table(self.order, self.grid)}

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        order, gap = self._route(layout)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv(
            u,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            order,
            gap if self.true_distance_conv else None,
        )
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,  # added, with the softplus, inside the scan in full precision
            order=order,
            gap=gap if self.gap_decay else None,
        )
        return self.out_proj(y)

    def _route(self, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
        """Visiting order and gaps; None where they would be 0, 1, 2 ... and 0, 0, 0 ..."""
        # Streams stand in raster order, so that the raster order of any subset is no permutation.
        order = None if self.order == "raster" else layout.visit(self.rank)
        wants_gap = self.gap_decay or self.true_distance_conv
        gap = layout.gap(self.rank) if wants_gap and layout.index is not None else None
        return order, gap


@torch.no_grad()
def init_mixer(mixer: MambaMixer, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
    """Mamba-1's values for what PyTorch has no default for: A = -(1..S), D = 1, and a step bias
    such that softplus(bias) is log-uniform in [dt_min, dt_max]."""
    states = torch.arange(1, mixer.d_state + 1, device=mixer.A_log.device)
    mixer.A_log.copy_(states.to(mixer.A_log.dtype).log().expand_as(mixer.A_log))
    mixer.D.fill_(1.0)
    dt = torch.empty_like(mixer.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max)).exp()
    mixer.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class LongSkip(nn.Module):
    """Merges a block's input x_BLD with an earlier stream skip_BLD into a new x_BLD.

    One map of the concatenation up to 512 channels, a sum of two maps above, as in DiM.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.joint = nn.Linear(2 * dim, dim) if dim <= 512 else None
        self.apart = None if dim <= 512 else nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.joint is not None:
            return self.joint(torch.cat([x, skip], dim=-1)).to(x.dtype)
        assert self.apart is not None
        return self.apart[0](x).to(x.dtype) + self.apart[1](skip)


class DiMBlock(nn.Module):
    """x + (1 + gate) * Mixer(RMSNorm(x) * (1 + scale) + shift) for all tokens of the stream.

    Modulation is adaLN-single: cond_B3D (shift, scale, gate), shared by all blocks, plus this
    block's own table. The residual stream keeps its dtype under autocast.
    """

    def __init__(self, dim: int, mixer: MambaMixer, *, has_skip: bool) -> None:
        super().__init__()
        self.skip = LongSkip(dim) if has_skip else None
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.table = nn.Parameter(torch.empty(3, dim))

    def forward(
        self, x: Tensor, cond: Tensor, layout: Layout, skip: Tensor | None = None
    ) -> Tensor:
        if (self.skip is None) != (skip is None):
            raise ValueError(
                "DiMBlock: a block with a long skip needs the skipped stream, one without takes "
                "none; run the blocks with run_blocks(..., skips=model.skips)."
            )
        if self.skip is not None:
            x = self.skip(x, skip)
        shift, scale, gate = (cond + self.table)[:, :, None].unbind(1)
        return x + (1 + gate) * self.mixer(self.norm(x) * (1 + scale) + shift, layout)
