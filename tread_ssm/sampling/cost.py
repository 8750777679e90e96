"""What sampling an image costs, whatever guides it.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tread_ssm.diffusion import Objective
from tread_ssm.models import ModelConfig
from tread_ssm.pretrained import Description, load_export
from tread_ssm.routing import Draw, Route, RoutePlan
from tread_ssm.routing.cost import forward_flops
from tread_ssm.sampling.generate import noise_of, sample_batch
from tread_ssm.sampling.guidance import RouteGuidance
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.tables import short
from tread_ssm.tokens import TokenSubset


@dataclass(frozen=True)
class SamplingCost:
    """What one image takes.

    Attributes:
        passes: Strong and weak ones, each over one image.
        flops: Of all passes; a multiplication and an addition are two.
    """

    passes: int
    flops: int


def sampling_cost(
    model: ModelConfig,
    objective: Objective,
    routes: tuple[Route, ...],
    recipe: Recipe,
    weak: ModelConfig | None = None,
) -> SamplingCost:
    """Count the passes of an image: the sampler walks with networks that only note what is asked.

    Args:
        model: The network.
        objective: What it was trained with.
        routes: What it was trained with.
        recipe: How to sample.
        weak: The other network, where the recipe guides by "model".

    Raises:
        ValueError: The recipe does not fit the network or the objective.
    """
    networks = [_Counting(config) for config in (model, weak) if config is not None]
    by_tokens = recipe.kind in ("routes", "path")
    plan, noise = RoutePlan(routes, model.depth), noise_of([0], model, seed=0)
    sample_batch(
        networks[0],
        objective,
        noise,
        torch.zeros(1, dtype=torch.int64),
        recipe,
        null_label=model.n_classes,
        routes=RouteGuidance(plan, model.grid, 0, [0]) if by_tokens else None,
        weak=None if weak is None else objective.denoiser(networks[1]),
        fresh=lambda step: noise,
    )
    return SamplingCost(sum(n.passes for n in networks), sum(n.flops for n in networks))


def cost_text(run: Description, recipe: Recipe) -> str:
    """A sentence on what an image of a run costs."""
    weak = None if recipe.weak_run is None else load_export(Path(recipe.weak_run))[1].model
    cost = sampling_cost(run.model, run.objective, run.routes, recipe, weak)
    guided = f"guided by {recipe.kind}" if recipe.guidance != 1 else "without guidance"
    return f"An image takes {short(cost.flops, 'FLOPs')} in {cost.passes} passes, {guided}."


class _Counting:
    """Stands in for a network, and counts what it would have computed."""

    def __init__(self, config: ModelConfig) -> None:
        self.passes, self.flops = 0, 0
        self._config = config

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
        drawn = tuple(
            (Route(r.start, r.stop, rejoin=r.rejoin), s.n_kept, s.length) for r, s in routing
        )
        self.passes += len(x)
        self.flops += len(x) * _pass_flops(self._config, drawn)
        return torch.zeros_like(x)


@cache  # a plan asks for the same passes in several kinds of guidance
def _pass_flops(config: ModelConfig, drawn: tuple[tuple[Route, int, int], ...]) -> int:
    """FLOPs of one image's pass, by routes, and how many tokens of how many each keeps."""
    with torch.device("meta"):
        model = config.build()
        x = torch.empty(1, config.channels, config.image_size, config.image_size)
        t, labels = torch.empty(1), torch.empty(1, dtype=torch.int64)
        draw = tuple((r, TokenSubset(torch.arange(n)[None], length)) for r, n, length in drawn)
    return forward_flops(model, draw, (x, t, labels))
