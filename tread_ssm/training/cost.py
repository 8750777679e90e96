"""What a training step costs: the network, and the heads of the losses that look into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tread_ssm.config.run import RunConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.routing import Draw, RoutePlan
from tread_ssm.routing.cost import PlanCost, plan_cost
from tread_ssm.training.heads import WithHeads, with_heads


def training_cost(config: RunConfig, plan: RoutePlan | None = None) -> PlanCost:
    """Tokens and FLOPs of an image, dense against routed.

    `training` counts the heads of auxiliary losses as well, on the tokens that they see. `forward`
    is the network alone, which is what is sampled from. The losses themselves are not counted.

    Args:
        config: The run.
        plan: Routes in the place of the run's.
    """
    plan = config.plan if plan is None else plan
    cost = backbone_cost(config.model, plan)
    with torch.device("meta"):
        trained = with_heads(config.model.build(), config.auxiliary)
    if not isinstance(trained, WithHeads):
        return cost
    model = config.model
    with torch.device("meta"):
        x = torch.empty(1, model.channels, model.image_size, model.image_size)
        t, labels = torch.empty(1), torch.empty(1, dtype=torch.int64)
    blocks = [loss.block % model.depth for loss in config.auxiliary if loss.block is not None]
    whole = plan_cost(_Tapped(trained, blocks), plan, (x, t, labels))
    return PlanCost(
        dense=replace(cost.dense, training=whole.dense.training),
        routed=replace(cost.routed, training=whole.routed.training),
    )


class _Tapped:
    """The network with its heads, called as in a step of training."""

    def __init__(self, trained: WithHeads, taps: Sequence[int]) -> None:
        self.blocks, self.grid = trained.backbone.blocks, trained.backbone.grid
        self._trained, self._taps = trained, taps

    def __call__(self, *inputs: Tensor, routing: Draw) -> Any:
        return self._trained(*inputs, routing=routing, taps=self._taps)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._trained.zero_grad(set_to_none)
