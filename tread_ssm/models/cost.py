"""What a backbone costs with a plan of routes, before anything of it exists."""

from __future__ import annotations

import torch

from tread_ssm.models.build import ModelConfig, build_model
from tread_ssm.routing.cost import PlanCost, plan_cost
from tread_ssm.routing.plan import RoutePlan


def backbone_cost(config: ModelConfig, plan: RoutePlan, batch: int = 1) -> PlanCost:
    """Tokens and FLOPs, dense against routed; the model lives on the meta device only."""
    with torch.device("meta"):
        model = build_model(config)
        x = torch.empty(batch, config.channels, config.image_size, config.image_size)
        t = torch.empty(batch)
        labels = torch.empty(batch, dtype=torch.int64)
    return plan_cost(model, plan, (x, t, labels))


def long_skips(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(source, target) blocks of a backbone's long skips; () where it has none."""
    with torch.device("meta"):
        model = build_model(config)
    return tuple(getattr(model, "skips", ()))
