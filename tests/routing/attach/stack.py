"""A small stack of blocks to attach routes to, and draws for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tread_ssm.routing import Attached, Draw, Route, RoutePlan

GRID, N, D, BATCH = (4, 4), 16, 8, 3


class Block(nn.Module):
    """Attention that may get a table, a condition and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        table: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        q = x if table is None else x + table
        return x + self.attention(q, q, x, need_weights=False)[0] + (0 if skip is None else skip)


class Stack(nn.Module):
    """Six blocks."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.recompute = 0

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """Through all blocks; `recompute` of them in a checkpoint, 0: none."""
        for first in range(0, len(self.blocks), self.recompute or len(self.blocks)):

            def run(x: Tensor, first: int = first) -> Tensor:
                for block in list(self.blocks)[first:][: self.recompute or None]:
                    x = block(x, **arguments)
                return x

            x = checkpoint(run, x, use_reentrant=False) if self.recompute else run(x)
        return x


def plan(*routes: Route, depth: int = 6) -> RoutePlan:
    return RoutePlan(routes or (Route(1, -1),), depth)


def drawn(seed: int = 0, batch: int = BATCH, **route: Any) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return plan(Route(1, -1, **route)).draw(batch, GRID, generator)


def data(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, N, D, generator=torch.Generator().manual_seed(seed))


def refused(routing: Attached, draw: Draw, model: Stack, match: str, **arguments: Any) -> None:
    with routing.using(draw), pytest.raises(ValueError, match=match):
        model(data(), **arguments)
