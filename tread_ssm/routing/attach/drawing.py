"""Routes that draw by themselves: which tokens each training pass keeps, without code per step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from tread_ssm.routing.attach.arguments import Blocks, Call
from tread_ssm.routing.attach.per_token import How, PerToken, parsed
from tread_ssm.routing.attach.unfit import refuse_routes
from tread_ssm.routing.plan import Draw, Route, RoutePlan, RouteSchedule
from tread_ssm.routing.select import RandomTokens
from tread_ssm.tokens import Grid


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


def default_route(drop: float, depth: int) -> Route:
    """The route that TREAD (arXiv 2501.04765) recommends: blocks 2 to depth - 4, both inside."""
    if depth < 3:
        raise ValueError(
            f"attach: drop={drop} needs at least 3 blocks, one before and one behind the route; "
            f"the model has {depth}."
        )
    return Route(2, depth - 3, drop) if depth >= 8 else Route(1, depth - 1, drop)


class Drawing:
    """Draws for the passes of a training, made when they begin."""

    def __init__(self, config: SelfDrawing, depth: int) -> None:
        refuse_routes(config.routes)
        self.config = config
        self.plan = RoutePlan(config.routes, depth)
        self._step, self._pass = 0, 0
        # A compiled graph holds no generator: the draw is made between two graphs.
        self.next = torch.compiler.disable(self._next)

    def step(self, step: int | None) -> None:
        """Go to the next step, or to the numbered one."""
        self._step, self._pass = self._step + 1 if step is None else step, 0

    def _next(self, call: Call, rows: Sequence[Blocks]) -> Draw:
        """The draw for the pass that begins with a call of the first block.

        Raises:
            ValueError: The grid is unknown.
        """
        config, plan = self.config, self.plan
        if config.schedule is not None and config.total_steps is not None:
            plan = config.schedule.at(plan, self._step, config.total_steps)
        stream = call.streams()[0]
        batch = (
            1 if any(serves_the_batch(how) for row in rows for how in _hows(row)) else len(stream)
        )
        generator = torch.Generator().manual_seed(self._seed())
        self._pass += 1
        return plan.draw(batch, self._grid(call, plan), generator, device=stream.device)

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


def serves_the_batch(how: How) -> bool:
    """Whether one table serves the whole batch, so that one draw must."""
    if isinstance(how, tuple):
        return any(serves_the_batch(h) for h in how)
    how = parsed(how)
    return isinstance(how, PerToken) and any(
        "n" in left and "b" not in left and right is None for left, right in how.forms
    )


def _hows(row: Blocks) -> Sequence[Any]:
    per_token: Mapping[str, How] = row.per_token
    return tuple(per_token.values())
