"""Routes, checked plans of routes, draws, and how much is dropped as training goes on.

A draw is made outside the model and passed in: it says which tokens each route keeps, and it is
all that losses and logs need to know. Shape legend: B batch, N tokens, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tread_ssm.routing.select import RandomTokens, Select
from tread_ssm.tokens import Grid, TokenSubset, check_grid, grid_text, is_whole

Rejoin = Literal["start", "input", "sum", "fuse"]


@dataclass(frozen=True)
class Route:
    """Carries a share of the tokens past the blocks [start, stop), as `range` counts.

    Attributes:
        start: The first block inside; a negative number counts from the end.
        stop: The first block behind; a negative number counts from the end, so stop=-3 leaves
            three blocks behind the route.
        drop: Share of tokens that skip the blocks, 0 <= drop < 1.
        select: Which tokens stay.
        rejoin: What stands at a dropped token's place at `stop`: the token as it was at the
            route's start ("start", TREAD v2), the network's input token ("input"), or the sum
            of both ("sum"); TREAD, arXiv 2501.04765. "fuse": a learned map merges what the route's
            start and its end know of every token, see `Fuse`; it starts as "start".
        keep: Raster positions that are never dropped; negative ones count from the end.
        path_drop: Probability, 0 <= path_drop < 1, that a step skips the blocks altogether, for all
            tokens of all samples; SPRINT, arXiv 2510.21986, has 0.1. Path guidance needs it.

    Raises:
        ValueError: A value is of the wrong type or out of its range.
    """

    start: int
    stop: int
    drop: float = 0.5
    select: Select = field(default_factory=RandomTokens)
    rejoin: Rejoin = "start"
    keep: tuple[int, ...] = ()
    path_drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            if not is_whole(getattr(self, name)):
                raise ValueError(
                    f"{self._name()}: {name} is {getattr(self, name)!r}; block numbers are whole "
                    f"numbers (int)."
                )
        wrong = [p for p in self.keep if not is_whole(p)]
        if wrong or len(set(self.keep)) < len(self.keep):
            raise ValueError(
                f"{self._name()}: keep is {self.keep}; positions are whole numbers (int) and "
                f"each is named once."
            )
        if not isinstance(self.drop, (int, float)) or not 0 <= self.drop < 1:
            raise ValueError(
                f"{self._name()}: drop is {self.drop!r}; it is the share of tokens that skip the "
                f"blocks and must satisfy 0 <= drop < 1."
            )
        if not isinstance(self.path_drop, (int, float)) or not 0 <= self.path_drop < 1:
            raise ValueError(
                f"{self._name()}: path_drop is {self.path_drop!r}; it is the probability that a "
                f"step skips the blocks and must satisfy 0 <= path_drop < 1."
            )
        if self.rejoin not in get_args(Rejoin):
            raise ValueError(
                f"{self._name()}: rejoin is {self.rejoin!r}; use one of "
                f"{', '.join(get_args(Rejoin))}."
            )

    def resolve(self, depth: int) -> Route:
        """The route with non-negative numbers for a stack of `depth` blocks.

        Raises:
            ValueError: The route leaves the stack or holds no block.
        """
        start = self.start + depth if self.start < 0 else self.start
        stop = self.stop + depth if self.stop < 0 else self.stop
        if not 0 <= start < depth:
            raise ValueError(
                f"{self._name()}: depth is {depth}; start must lie in 0..{depth - 1} "
                f"(or -{depth}..-1, counted from the end)."
            )
        if stop > depth or stop < 0:
            raise ValueError(
                f"{self._name()}: depth is {depth}; stop is exclusive and may be at most {depth}."
            )
        if start >= stop:
            raise ValueError(
                f"{self._name()}: with depth {depth} the route runs from block {start} to {stop} "
                f"and holds no block; stop must be greater than start."
            )
        return replace(self, start=start, stop=stop)

    def _name(self) -> str:
        return f"Route(start={self.start}, stop={self.stop})"


Draw: TypeAlias = tuple[tuple[Route, TokenSubset], ...]
"""For each route, in the order of the blocks: the route (numbers resolved) and what it keeps."""


def kept_in(draw: Draw, block: int) -> TokenSubset | None:
    """What the route around a block, counted from 0, keeps; None: the block sees all tokens."""
    found = [subset for route, subset in draw if route.start <= block < route.stop]
    return found[0] if found else None


@dataclass(frozen=True)
class RoutePlan:
    """Routes for a stack of `depth` blocks, resolved, sorted and checked when it is made.

    Attributes:
        routes: In any order; then numbers resolved, sorted by block.
        depth: Blocks of the stack.

    Raises:
        ValueError: A route leaves the stack, holds no block, or overlaps another.
    """

    routes: Sequence[Route]
    depth: int

    def __post_init__(self) -> None:
        if not is_whole(self.depth) or self.depth < 0:
            raise ValueError(
                f"RoutePlan: depth is {self.depth!r}; it is the number of blocks, a whole number."
            )
        resolved = sorted((r.resolve(self.depth) for r in self.routes), key=lambda r: r.start)
        for first, second in pairwise(resolved):
            if second.start < first.stop:
                raise ValueError(
                    f"Route(start={second.start}, stop={second.stop}) begins inside "
                    f"Route(start={first.start}, stop={first.stop}); routes follow one another, "
                    f"so start must be at least {first.stop}."
                )
        object.__setattr__(self, "routes", tuple(resolved))

    def scaled(self, scale: float) -> RoutePlan:
        """The plan with every drop multiplied by `scale`; 0 gives a plan without routes."""
        if scale == 0:
            return RoutePlan((), self.depth)
        scaled = tuple(replace(r, drop=r.drop * scale) for r in self.routes)
        return RoutePlan(scaled, self.depth)

    def with_drop(self, drop: float) -> RoutePlan:
        """The plan with the same drop for every route, without path drop; 0 leaves no routes."""
        if drop == 0:
            return RoutePlan((), self.depth)
        routes = self.without_path_drop().routes
        return RoutePlan(tuple(replace(r, drop=drop) for r in routes), self.depth)

    def without_path_drop(self) -> RoutePlan:
        """The plan in which no step skips the blocks of a route altogether."""
        return RoutePlan(tuple(replace(r, path_drop=0.0) for r in self.routes), self.depth)

    def n_kept(self, grid: Grid) -> tuple[int, ...]:
        """K of every route on a grid.

        Raises:
            ValueError: The grid is none, a route keeps no token of it, or `Route.keep` names a
                position outside it or one position twice.
        """
        check_grid("RoutePlan.n_kept", grid)
        n = math.prod(grid)
        kept = tuple(r.select.n_kept(grid, r.drop) for r in self.routes)
        for route, k in zip(self.routes, kept, strict=True):
            if k < 1:
                raise ValueError(
                    f"Route(start={route.start}, stop={route.stop}): drop {route.drop} keeps no "
                    f"token of {grid_text(grid)}; use a smaller drop."
                )
            wrong = [p for p in route.keep if not -n <= p < n]
            if wrong:
                raise ValueError(
                    f"Route(start={route.start}, stop={route.stop}): keep names position "
                    f"{wrong[0]}, but there are {n} tokens."
                )
            if len({p % n for p in route.keep}) < len(route.keep):
                raise ValueError(
                    f"Route(start={route.start}, stop={route.stop}): keep={route.keep} names one "
                    f"of {n} tokens twice, from the front and from the end."
                )
        return kept

    def draw(
        self,
        batch: int,
        grid: Grid,
        generator: torch.Generator | None = None,
        *,
        keep: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Draw:
        """Which tokens each route keeps for a batch.

        A route that drops nothing on this grid is left out: it is the dense network. One whose
        path is dropped keeps nothing.

        Args:
            batch: B, samples; each has a draw of its own.
            grid: (rows, columns) of the image tokens, N = rows * columns, or (frames, rows,
                columns), or whatever else the tokens' raster order runs through.
            generator: CPU generator; None uses torch's default one.
            keep: bool (N,) or (B, N), tokens that are never dropped (besides each route's own).
            device: Where the result's index goes.

        Raises:
            ValueError: Batch or grid are no sizes, a route keeps no token, or more tokens must
                stay than are kept.
        """
        if not is_whole(batch) or batch < 1:
            raise ValueError(f"RoutePlan.draw: batch is {batch!r}; use a whole number, at least 1.")
        check_grid("RoutePlan.draw", grid)
        n = math.prod(grid)
        if keep is not None and tuple(keep.shape) not in ((n,), (batch, n)):
            raise ValueError(
                f"RoutePlan.draw: keep has shape {tuple(keep.shape)}; expected ({n},) or "
                f"({batch}, {n}) for a grid of {grid_text(grid)}."
            )
        drawn = []
        for route, k in zip(self.routes, self.n_kept(grid), strict=True):
            if route.path_drop and float(torch.rand((), generator=generator)) < route.path_drop:
                drawn.append((route, _nothing(batch, grid, device)))
                continue
            if k == n:
                continue
            forced = _forced(route.keep, keep, batch, n)
            subset = route.select.draw(batch, grid, route.drop, forced, generator)
            subset = replace(subset, full_grid=tuple(grid))
            drawn.append((route, subset if device is None else subset.to(device)))
        return tuple(drawn)

    def skipping(self, batch: int, grid: Grid, *, device: torch.device | str | None = None) -> Draw:
        """The draw in which every route keeps nothing, so that its blocks are skipped.

        Args:
            batch: B, samples.
            grid: Of the image tokens, as for `draw`.
            device: Where the result's index goes.
        """
        check_grid("RoutePlan.skipping", grid)
        return tuple((route, _nothing(batch, grid, device)) for route in self.routes)


def _nothing(batch: int, grid: Grid, device: torch.device | str | None) -> TokenSubset:
    index = torch.empty(batch, 0, dtype=torch.int64, device=device)
    return TokenSubset(index, math.prod(grid), full_grid=tuple(grid))


def _forced(positions: tuple[int, ...], keep: Tensor | None, batch: int, n: int) -> Tensor | None:
    """(B, N) bool of the tokens that must stay, None where there are none."""
    if keep is None and not positions:
        return None
    forced = torch.zeros(batch, n, dtype=torch.bool)
    forced[:, list(positions)] = True
    return forced if keep is None else forced | keep.to("cpu", torch.bool)


@dataclass(frozen=True)
class RouteSchedule:
    """How much the routes drop as training goes on.

    Attributes:
        from_share: The first steps drop this share of each route's drop (1: all of it from the
            start).
        ramp: Part of training, 0..1, over which that share grows evenly to 1.
        levels: Distinct shares on the way; each is a sequence length, so a compiled graph.
        dense_tail: Last part of training, 0..1, without routes.
        off_after: No routes from this step on; None: never.

    Raises:
        ValueError: A part outside 0..1, no level, or a negative step.
    """

    from_share: float = 1.0
    ramp: float = 0.0
    levels: int = 4
    dense_tail: float = 0.0
    off_after: int | None = None

    def __post_init__(self) -> None:
        for name in ("from_share", "ramp", "dense_tail"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"RouteSchedule: {name} is {getattr(self, name)}; it is a part and must lie "
                    f"in 0..1."
                )
        if self.levels < 1:
            raise ValueError(f"RouteSchedule: levels is {self.levels}; use at least 1.")
        if self.off_after is not None and self.off_after < 0:
            raise ValueError(f"RouteSchedule: off_after is {self.off_after}; use a step >= 0.")

    def share(self, step: int, total_steps: int) -> float:
        """The factor on every route's drop.

        Args:
            step: Steps done, 0..total_steps - 1.
            total_steps: Of the whole training.

        Returns:
            0..1; 0 is a dense step.
        """
        if self.off_after is not None and step >= self.off_after:
            return 0.0
        if step >= total_steps - math.floor(total_steps * self.dense_tail + 1e-9):
            return 0.0
        ramp_steps = total_steps * self.ramp
        if step >= ramp_steps:
            return 1.0
        level = math.floor(step / ramp_steps * self.levels) / self.levels
        return self.from_share + (1 - self.from_share) * level

    def at(self, plan: RoutePlan, step: int, total_steps: int) -> RoutePlan:
        """The plan in force; its drops are those of `plan` times `share`.

        Args:
            plan: The routes of the training.
            step, total_steps: As for `share`.
        """
        return plan.scaled(self.share(step, total_steps))
