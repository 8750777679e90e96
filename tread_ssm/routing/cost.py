"""Tokens and FLOPs of a network, dense against routed, known before any training.

The network is run once dense and once with a draw under torch's FlopCounterMode, which counts
matrix products, convolutions, attention and the scan operators of this package (a multiplication
and an addition are two FLOPs; element-wise work is not counted). On the meta device this costs
no memory and no time, whatever the size of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tread_ssm.routing.plan import Draw, RoutePlan


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

    def __call__(self, *inputs: Tensor, routing: Draw) -> Tensor: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


def plan_cost(network: Routed, plan: RoutePlan, inputs: Sequence[Tensor]) -> PlanCost:
    """Count a network with and without the routes of `plan`, whose path is not dropped.

    Args:
        network: Called as network(*inputs, routing=draw); its gradients are cleared afterwards.
        plan: Routes for the network's blocks.
        inputs: One batch, on the network's device; only shapes matter.
    """
    batch, device = inputs[0].shape[0], inputs[0].device
    generator = torch.Generator().manual_seed(0)
    draw = plan.without_path_drop().draw(batch, network.grid, generator, device=device)
    return PlanCost(dense=_count(network, inputs, ()), routed=_count(network, inputs, draw))


def forward_flops(network: Routed, draw: Draw, inputs: Sequence[Tensor]) -> int:
    """FLOPs of one forward pass; arguments as of `plan_cost`, with a draw on the same device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*inputs, routing=draw)
    return int(counter.get_total_flops())


def _count(network: Routed, inputs: Sequence[Tensor], draw: Draw) -> Cost:
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=corrected)
    with counter, _watch(network.blocks, counter) as (tokens, flops):
        out = network(*inputs, routing=draw)
        only_forward = counter.get_total_flops()
        out.sum().backward()
    network.zero_grad(set_to_none=True)
    return Cost(tuple(tokens), tuple(flops), only_forward, counter.get_total_flops())


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
def _watch(
    blocks: nn.ModuleList, counter: FlopCounterMode
) -> Iterator[tuple[list[int], list[int]]]:
    """Record, block by block, the stream's length and the FLOPs of the forward pass."""
    tokens: list[int] = []
    flops: list[int] = []
    before: list[int] = []

    def enter(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        stream = (*arguments, *named.values())[0]
        tokens.append((stream[0] if isinstance(stream, tuple) else stream).shape[1])
        before.append(counter.get_total_flops())

    def leave(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        flops.append(counter.get_total_flops() - before.pop())

    handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(leave) for b in blocks]
    try:
        yield tokens, flops
    finally:
        for handle in handles:
            handle.remove()
