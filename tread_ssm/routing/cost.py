"""Tokens and FLOPs of a network, dense against routed, known before any training.

The network is run once dense and once with a draw under torch's FlopCounterMode, which counts
matrix products, convolutions, attention and the scan operators of this package (a multiplication
and an addition are two FLOPs; element-wise work is not counted). On the meta device this costs
no memory and no time, whatever the size of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tread_ssm.routing.attach.hooks import Attached
from tread_ssm.routing.plan import Draw, RoutePlan
from tread_ssm.tokens import Grid


@dataclass(frozen=True)
class Cost:
    """What one forward (and backward) pass takes for one batch.

    Attributes:
        tokens: Per block, the length of the stream that it sees, prefix and padding included.
        block_flops: Per block, FLOPs of its forward pass.
        forward: FLOPs of the whole network's forward pass.
        training: FLOPs of forward and backward pass; equals 3 x forward only roughly.
    """

    tokens: tuple[int, ...]
    block_flops: tuple[int, ...]
    forward: int
    training: int


@dataclass(frozen=True)
class PlanCost:
    """The dense network beside the routed one.

    Attributes:
        dense: Without routes.
        routed: With the routes of a plan.
    """

    dense: Cost
    routed: Cost

    @property
    def step_share(self) -> float:
        """Training FLOPs of the routed network over those of the dense one."""
        return self.routed.training / self.dense.training

    @property
    def token_share(self) -> float:
        """Tokens seen by all blocks, routed over dense."""
        return sum(self.routed.tokens) / sum(self.dense.tokens)


class Routed(Protocol):
    """What plan_cost asks of a network: the stack that run_blocks gets, and the token grid."""

    blocks: nn.ModuleList
    grid: tuple[int, int]

    def __call__(self, *inputs: Tensor, routing: Draw) -> Tensor:
        """The network's output for its inputs, with a draw of routes."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as torch.nn.Module does."""


def plan_cost(
    network: Routed | Attached,
    plan: RoutePlan,
    inputs: Sequence[Tensor] | Mapping[str, Any],
    *,
    grid: Grid | None = None,
) -> PlanCost:
    """Count a network with and without the routes of `plan`, whose path is not dropped.

        plan_cost(attach(model), plan, {"hidden_states": x, "timestep": t}, grid=(16, 16))

    Args:
        network: Called as network(*inputs, routing=draw), or what `attach` made of a model, which
            is called as model(*inputs). Gradients are cleared afterwards.
        plan: Routes for the network's blocks.
        inputs: One batch, on the network's device; only shapes matter. A mapping holds them by
            name.
        grid: (rows, columns) of tokens; of an attached model alone, others know theirs.

    Raises:
        ValueError: An attached model lacks `grid`, or `attach` was given its blocks alone.
    """
    target, grid = _target(network, inputs), _grid(network, grid)
    first = next(x for x in target.inputs if isinstance(x, Tensor))
    generator = torch.Generator().manual_seed(0)
    # A draw for one sample serves a whole batch of an attached model, whatever its tables are.
    batch = 1 if isinstance(network, Attached) else first.shape[0]
    draw = plan.without_path_drop().draw(batch, grid, generator, device=first.device)
    return PlanCost(dense=_count(target, ()), routed=_count(target, draw))


def forward_flops(network: Routed, draw: Draw, inputs: Sequence[Tensor]) -> int:
    """FLOPs of one forward pass; arguments as of `plan_cost`, with a draw on the same device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*inputs, routing=draw)
    return int(counter.get_total_flops())


class _Target(NamedTuple):
    """What is counted.

    `run` runs it with a draw; `length` tells how long a block's stream is by the arguments of its
    call: its number, those in order and those by name.
    """

    model: Any
    inputs: tuple[Any, ...]
    blocks: Sequence[nn.Module]
    run: Callable[[Draw], Any]
    length: Callable[[int, tuple[Any, ...], dict[str, Any]], int]


def _target(network: Routed | Attached, inputs: Sequence[Tensor] | Mapping[str, Any]) -> _Target:
    args, named = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    every = (*args, *named.values())
    if not isinstance(network, Attached):
        own: Any = network
        blocks = list(network.blocks)
        return _Target(
            own, every, blocks, lambda draw: own(*args, **named, routing=draw), _first_length
        )
    attached, model = network, network.model
    if model is None:
        raise ValueError(
            "plan_cost: routes were attached to blocks alone, so it is unknown what calls them; "
            "write attach(model), with rows=(Blocks(...),) where it has no preset."
        )

    def run(draw: Draw) -> Any:
        with attached.using(draw):
            return model(*args, **named)

    return _Target(model, every, attached.blocks, run, attached.stream_length)


def _grid(network: Routed | Attached, grid: Grid | None) -> Grid:
    if isinstance(network, Attached):
        if grid is None:
            raise ValueError(
                "plan_cost: an attached model does not tell its token grid; pass "
                "grid=(rows, columns)."
            )
        return grid
    if grid is not None and tuple(grid) != tuple(network.grid):
        raise ValueError(
            f"plan_cost: grid is {tuple(grid)}, but the network has {tuple(network.grid)}; leave "
            f"grid out."
        )
    return network.grid


def _first_length(i: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> int:
    stream = (*arguments, *named.values())[0]
    return int((stream[0] if isinstance(stream, tuple) else stream).shape[1])


def _count(target: _Target, draw: Draw) -> Cost:
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=corrected)
    with counter, _watch(target, counter) as (tokens, flops):
        out = target.run(draw)
        only_forward = counter.get_total_flops()
        sum(t.sum() for t in tree_leaves(out) if _learns(t)).backward()
    target.model.zero_grad(set_to_none=True)
    return Cost(tuple(tokens), tuple(flops), only_forward, counter.get_total_flops())


def _learns(output: Any) -> bool:
    return isinstance(output, Tensor) and output.requires_grad


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    out_shape: Any = None,
) -> int:
    """As many FLOPs for the input's gradient as forward, and as many for the weight's.

    torch's own formula counts the weight's gradient once for each group, which is far too much
    for depthwise convolutions.
    """
    places = math.prod(x_shape[2:] if transposed else grad_shape[2:])
    forward = 2 * grad_shape[0] * places * math.prod(weight_shape)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


@contextmanager
def _watch(target: _Target, counter: FlopCounterMode) -> Iterator[tuple[list[int], list[int]]]:
    """Record, block by block, the stream's length and the FLOPs of the forward pass."""
    tokens: list[int] = []
    flops: list[int] = []
    before: list[int] = []

    def enter(i: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens.append(target.length(i, args, named))
        before.append(counter.get_total_flops())

    def leave(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        flops.append(counter.get_total_flops() - before.pop())

    handles = [
        block.register_forward_pre_hook(
            lambda module, args, named, i=i: enter(i, args, named), with_kwargs=True
        )
        for i, block in enumerate(target.blocks)
    ]
    handles += [b.register_forward_hook(leave) for b in target.blocks]
    try:
        yield tokens, flops
    finally:
        for handle in handles:
            handle.remove()
