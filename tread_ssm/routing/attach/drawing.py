"""Routes that draw by themselves: which tokens each training pass keeps, without code per step."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from weakref import WeakValueDictionary

import torch
from torch import Tensor, distributed

from tread_ssm.routing.attach.arguments import Blocks, Call
from tread_ssm.routing.attach.per_token import How, PerToken, parsed
from tread_ssm.routing.attach.unfit import refuse_routes
from tread_ssm.routing.plan import Draw, Route, RoutePlan, RouteSchedule
from tread_ssm.routing.select import RandomTokens, Rows
from tread_ssm.tokens import Grid, TokenSubset


@dataclass(frozen=True)
class SelfDrawing:
    """How attached routes draw by themselves.

    Attributes:
        routes: As of a `RoutePlan`.
        schedule: How much they drop as training goes on; followed by `Attached.step`.
        total_steps: Length of the training, which the schedule needs.
        grid: Token grid, or a function that returns that of the pass which begins (buckets). None
            where the model tells it, or where tokens are drawn singly and the stream holds nothing
            else of unknown length.
        seed: What is drawn belongs to the seed, the step, the process and the pass of the step.
    """

    routes: Sequence[Route]
    schedule: RouteSchedule | None = None
    total_steps: int | None = None
    grid: Grid | Callable[[], Grid] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.schedule is None) != (self.total_steps is None):
            raise ValueError(
                "SelfDrawing: a schedule needs total_steps, the length of the training, and "
                "total_steps a schedule; give both or neither."
            )


def default_route(drop: float, depth: int, rows: bool = False) -> Route:
    """The route that TREAD (arXiv 2501.04765) recommends: blocks 2 to depth - 4, both inside.

    rows: Whether blocks need a rectangle of tokens, so that whole rows are dropped.
    """
    if depth < 3:
        raise ValueError(
            f"attach: drop={drop} needs at least 3 blocks, one before and one behind the route; "
            f"the model has {depth}."
        )
    start, stop = (2, depth - 3) if depth >= 8 else (1, depth - 1)
    return Route(start, stop, drop, Rows() if rows else RandomTokens())


class Drawing:
    """Draws for the passes of a training, made when they begin."""

    def __init__(self, config: SelfDrawing, depth: int) -> None:
        refuse_routes(config.routes)
        self.config = config
        self._all = RoutePlan(config.routes, depth)
        self._step, self._pass, self._version = 0, 0, 0
        self.plan = self._scheduled()
        torch.compiler.assume_constant_result(_shapes)  # here, because it imports dynamo
        self._number = next(_numbers)
        _drawings[self._number] = self

    def step(self, step: int | None) -> None:
        """Go to the next step, or to the numbered one."""
        self._step, self._pass = self._step + 1 if step is None else step, 0
        plan = self._scheduled()
        if plan != self.plan:  # compiled graphs are made for one plan
            self.plan, self._version = plan, self._version + 1

    def next(self, call: Call, rows: Sequence[Blocks]) -> Draw:
        """The draw for the pass that begins with a call of the first block.

        Raises:
            ValueError: The grid is unknown.
        """
        stream = call.streams()[0]
        shared = any(serves_the_batch(how) for row in rows for how in row.per_token.values())
        batch, grid = 1 if shared else stream.shape[0], self._grid(call, self.plan)
        if not torch.compiler.is_compiling():
            return self.made(batch, grid, stream.device)
        # A graph holds no generator: it calls an operator that draws, of which shapes are known.
        shapes = _shapes(self._number, self._version, *[index(n) for n in grid])
        indices = _draw(stream.detach(), self._number, batch, grid, [k for k, _ in shapes])
        n = math.prod(grid)
        return tuple(
            (route, TokenSubset(ids, n, kept, grid))
            for route, ids, (_, kept) in zip(self.plan.routes, indices, shapes, strict=True)
        )

    def made(self, batch: int, grid: Grid, device: torch.device) -> Draw:
        """The draw for the next pass."""
        generator = torch.Generator().manual_seed(self._seed())
        self._pass += 1
        return self.plan.draw(batch, grid, generator, device=device)

    def _scheduled(self) -> RoutePlan:
        config = self.config
        if config.schedule is None or config.total_steps is None:
            return self._all
        return config.schedule.at(self._all, self._step, config.total_steps)

    def _seed(self) -> int:
        started = distributed.is_available() and distributed.is_initialized()
        rank = distributed.get_rank() if started else 0
        text = f"{self.config.seed} {self._step} {rank} {self._pass}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    def _grid(self, call: Call, plan: RoutePlan) -> Grid:
        grid = self.config.grid
        if grid is not None:
            return grid() if callable(grid) else grid
        told = tuple(call.values.get(name) for name in call.blocks.grid_arguments)
        if told and None not in told:
            return tuple(int(n) for n in told if n is not None)
        prefix = call.blocks.n_prefix
        if isinstance(prefix, int) and all(isinstance(r.select, RandomTokens) for r in plan.routes):
            return 1, call.streams()[0].shape[1] - prefix
        raise ValueError(
            f"attach: the token grid is unknown from the call of {call.name}; give it as "
            f"attach(model, drawing=SelfDrawing(routes, grid=(rows, columns)))."
        )


_numbers = itertools.count()
_drawings: WeakValueDictionary[int, Drawing] = WeakValueDictionary()


@torch.library.custom_op(
    "tread_ssm::attached_draw", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _draw(
    stream: Tensor, number: int, batch: int, grid: Sequence[int], kept: Sequence[int]
) -> list[Tensor]:
    """The kept tokens of each route, (batch, kept) int64: the draw for the pass of a graph."""
    draw = _drawings[number].made(batch, tuple(grid), stream.device)
    return [subset.index for _, subset in draw]


@_draw.register_fake
def _(
    stream: Tensor, number: int, batch: int, grid: Sequence[int], kept: Sequence[int]
) -> list[Tensor]:
    return [stream.new_empty((batch, k), dtype=torch.int64) for k in kept]


def _shapes(number: int, version: int, *grid: int) -> tuple[tuple[int, Grid | None], ...]:
    """For each route how many tokens it keeps, and their grid; version: of the plan."""
    draw = _drawings[number].plan.draw(1, grid, torch.Generator().manual_seed(0))
    return tuple((subset.n_kept, subset.grid) for _, subset in draw)


def serves_the_batch(how: How) -> bool:
    """Whether one table serves the whole batch, so that one draw must."""
    if isinstance(how, tuple):
        return any(serves_the_batch(h) for h in how)
    how = parsed(how)
    return isinstance(how, PerToken) and any(
        "n" in left and "b" not in left and right is None for left, right in how.forms
    )
