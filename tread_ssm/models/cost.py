"""What a backbone costs with a plan of routes, before anything of it exists."""

from __future__ import annotations

import torch

from tread_ssm.models.backbone import BackboneConfig
from tread_ssm.routing.cost import PlanCost, plan_cost
from tread_ssm.routing.plan import RoutePlan


def backbone_cost(config: BackboneConfig, plan: RoutePlan, batch: int = 1) -> PlanCost:
    """Tokens and FLOPs, dense against routed; the model lives on the meta device only."""
    with torch.device("meta"):
        model = config.build()
        x = torch.empty(batch, config.channels, config.image_size, config.image_size)
        t = torch.empty(batch)
        labels = torch.empty(batch, dtype=torch.int64)
    return plan_cost(model, plan, (x, t, labels))


def long_skips(config: BackboneConfig) -> tuple[tuple[int, int], ...]:
    """(source, target) blocks of a backbone's long skips; () where it has none."""
    with torch.device("meta"):
        model = config.build()
    return model.skips


def count_parameters(config: BackboneConfig) -> int:
    """Parameters of a backbone, which is built on the meta device only."""
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())
