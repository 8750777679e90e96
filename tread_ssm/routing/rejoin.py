"""What happens to a stream at a route's two ends: which tokens enter, what stands there again.

Shape legend: B batch, S tokens of a stream, K those that enter the route, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from tread_ssm.routing.fuse import Map
from tread_ssm.routing.plan import Route
from tread_ssm.tokens import TokenSubset

Stream: TypeAlias = Any
"""A tensor x_BSD, or a tuple of such tensors (hidden, residual) that are taken and put alike."""


@dataclass(frozen=True)
class OpenRoute:
    """A route that a forward pass is inside of.

    Attributes:
        route: The route, its block numbers resolved.
        subset: Which tokens of the stream entered, prefix tokens included.
        start: The stream x_BSD at the route's start.
        input: The stream x_BSD in front of the first block. Only "input" and "sum" need it.
        fuse: The route's map, one for each tensor of a stream that is a tuple. Only "fuse" needs
            it.
    """

    route: Route
    subset: TokenSubset
    start: Stream
    input: Stream | None = None
    fuse: Map | Sequence[Map] | None = None

    def enter(self, x: Stream) -> Stream:
        """The tokens x_BKD of x_BSD that the blocks of the route see."""
        return each(self.subset.take, x)

    def unroute(self, x: Stream) -> Stream:
        """x_BSD with x_BKD at the kept places and the route's start at the dropped ones."""
        return each(self.subset.put, x, self.start)

    def rejoin(self, x: Stream) -> Stream:
        """The stream x_BSD behind the route: x_BKD, and at the dropped places what the route says.

        See `Route.rejoin` (TREAD, arXiv 2501.04765).
        """
        if self.route.rejoin == "fuse":
            assert self.fuse is not None
            return fused(self.fuse, self.start, x, self.subset)
        if self.route.rejoin == "start":
            return self.unroute(x)
        if self.route.rejoin == "input":
            return each(self.subset.put, x, self.input)
        both = each(lambda a, b: a + b, self.start, self.input)
        return each(self.subset.put, x, both)


def fused(
    fuse: Map | Sequence[Map], start: Stream, x: Stream, subset: TokenSubset | None = None
) -> Stream:
    """See `Fuse`; the map, or each tensor's own map, over a stream x_BSD or x_BKD."""
    if isinstance(x, tuple):
        maps: Any = fuse  # a ModuleList is no Sequence for a type checker
        return tuple(f(s, tensor, subset) for f, s, tensor in zip(maps, start, x, strict=True))
    assert callable(fuse)
    return fuse(start, x, subset)


def each(f: Callable[..., Tensor], *streams: Stream) -> Stream:
    """f over a stream's tensor, or over each tensor of a stream that is a tuple."""
    if isinstance(streams[0], tuple):
        return tuple(f(*tensors) for tensors in zip(*streams, strict=True))
    return f(*streams)
