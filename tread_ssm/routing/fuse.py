"""`rejoin: fuse`: a learned map at a route's end, of what the route's start and its end know.

Shape legend: B batch, S tokens of a stream, K those that entered the route, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tread_ssm.routing.plan import Draw, Route, RoutePlan
from tread_ssm.tokens import TokenSubset

Span: TypeAlias = tuple[int, int]
"""(start, stop) of the blocks of a route, as `range` counts."""


class Change(nn.Linear):
    """A linear map without bias that starts as zero, and samples no random numbers for that."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, bias=False)

    def reset_parameters(self) -> None:
        """Set the weight to zero."""
        nn.init.zeros_(self.weight)


class Fuse(nn.Module):
    """end + start @ U + end @ V, for every token of the stream at a route's end.

    `start` is the token as it was at the route's start. `end` is what the route's blocks made of
    it, and start + mask_token where it was dropped. U, V and the mask token start at zero, so the
    module starts as rejoin "start", bit for bit, and as the identity where nothing is dropped.
    Afterwards it is a part of the network: the dense one passes through it as well.

    In terms of what the blocks changed, end - start, this is the linear map of the concatenation
    with a mask token in SPRINT (arXiv 2510.21986), in which the mask token stands for a dropped
    token's change. There the map starts at random.

    Attributes:
        mask_token: (D,), what a dropped token gets instead of the blocks' change.
        of_start: U, of the route's start.
        of_end: V, of the route's end.
    """

    def __init__(self, dim: int) -> None:
        """A map for streams of D = `dim` channels."""
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.of_start = Change(dim)
        self.of_end = Change(dim)

    def forward(self, start: Tensor, x: Tensor, subset: TokenSubset | None = None) -> Tensor:
        """The stream x_BSD behind the route, in the dtype of `start`.

        Args:
            start: (B, S, D), the stream at the route's start.
            x: (B, K, D), the tokens that leave the route's last block.
            subset: Which tokens of the stream these are; None: all of them.
        """
        end = x if subset is None else subset.put(x, start + self.mask_token.to(start.dtype))
        return end + (self.of_start(start) + self.of_end(end)).to(end.dtype)


Map: TypeAlias = Callable[..., Tensor]
"""A `Fuse`, or whatever is called alike."""

Rejoins: TypeAlias = Mapping[Span, Map | Sequence[Map]]
"""The maps of a stack's fused routes; where a stream is a tuple of tensors, one for each."""


def resolved(spans: Iterable[Span], depth: int) -> tuple[Span, ...]:
    """The spans in their order, with non-negative numbers for a stack of `depth` blocks.

    Raises:
        ValueError: They leave the stack, hold no block or overlap.
    """
    plan = RoutePlan(tuple(Route(start, stop) for start, stop in spans), depth)
    return tuple((route.start, route.stop) for route in plan.routes)


def check_fused(where: str, depth: int, draw: Draw, spans: Iterable[Span]) -> None:
    """Raise ValueError unless routes with rejoin "fuse" and spans with a map are the same ones.

    Args:
        where: Who asks, for the message.
        depth: Blocks of the stack.
        draw: A draw; a span without a route in it is one that drops nothing.
        spans: The blocks that have a map.
    """
    known = sorted(spans)
    free_from = 0
    for start, stop in known:
        if not free_from <= start < stop <= depth:
            raise ValueError(
                f"{where}: the map for blocks ({start}, {stop}) does not fit {depth} blocks; name "
                f"(start, stop) of routes that follow one another."
            )
        free_from = stop
    for route, _ in draw:
        name = f"{where}: Route(start={route.start}, stop={route.stop}, rejoin={route.rejoin!r})"
        own = (route.start, route.stop)
        if route.rejoin == "fuse" and own in known:
            continue
        if route.rejoin == "fuse":
            there = f"those for {', '.join(map(str, known))}" if known else "none"
            raise ValueError(
                f"{name} needs a map for its blocks, and the maps are {there}; build the model "
                f"with fuse=({own},), or pass rejoins={{{own}: Fuse(dim)}}."
            )
        for start, stop in known:
            if route.start < stop and start < route.stop:
                raise ValueError(
                    f"{name} meets blocks {start} to {stop - 1}, whose start and end a map merges; "
                    f"use Route(start={start}, stop={stop}, rejoin='fuse')."
                )
