"""The denoiser that a recipe's guidance makes of a network's.

Shape legend: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tread_ssm.diffusion import (
    Denoiser,
    Objective,
    classifier_free,
    guide,
    path_guidance,
    route_guidance,
)
from tread_ssm.models import ModelConfig
from tread_ssm.pretrained import Description, load_export
from tread_ssm.randomness import generator
from tread_ssm.routing import Draw, RoutePlan
from tread_ssm.routing.guidance import check_drops
from tread_ssm.sampling.recipe import Recipe


@dataclass(frozen=True)
class RouteGuidance:
    """Which tokens the passes of guidance by routes (or by path) keep, see `route_guidance`.

    Attributes:
        plan: The routes that the network was trained with.
        grid: (rows, columns) of its tokens.
        seed: Of the set.
        images: Numbers of the images in the batch.

    Raises:
        ValueError: The plan has no routes.
    """

    plan: RoutePlan
    grid: tuple[int, int]
    seed: int
    images: Sequence[int]

    def __post_init__(self) -> None:
        if not self.plan.routes:
            raise ValueError(
                "Guidance by routes or path needs a network that was trained with routes."
            )

    def draw(self, plan: RoutePlan, t: float) -> Draw:
        """What a plan keeps of each image: a function of the seed, its number and t.

        Args:
            plan: The routes of one pass.
            t: Where the sampler stands.
        """
        purpose = f"sample routes at {t.hex()}"
        rows = [plan.draw(1, self.grid, generator(self.seed, i, purpose)) for i in self.images]
        return tuple(
            (route, replace(subset, index=torch.cat([row[k][1].index for row in rows])))
            for k, (route, subset) in enumerate(rows[0])
        )


def guided(
    denoiser: Denoiser,
    recipe: Recipe,
    null_label: int,
    routes: RouteGuidance | None,
    weak: Denoiser | None,
    apart: bool = False,
) -> Denoiser:
    """The denoiser with the recipe's guidance; arguments as of `sample_batch`."""
    rule, kind = recipe.rule, recipe.kind
    if kind == "model":
        if weak is None:
            raise ValueError("sample_batch: guided_by 'model' needs the other one; pass `weak`.")
        return guide(denoiser, weak, rule)
    if kind == "class":
        if not null_label:
            return denoiser
        return classifier_free(
            denoiser, rule.scale, null_label, rule.interval, rule.channels, apart=apart
        )
    if routes is None:
        raise ValueError(f"sample_batch: guided_by {kind!r} chooses tokens; pass `routes`.")
    if kind == "path":
        return path_guidance(denoiser, routes.plan, routes.grid, rule, null_label)
    assert recipe.weak_drop is not None
    return route_guidance(
        denoiser,
        routes.plan,
        rule.scale,
        recipe.weak_drop,
        recipe.strong_drop,
        routes.draw,
        interval=rule.interval,
        channels=rule.channels,
    )


def weak_denoiser(folder: str, run: Description, device: torch.device) -> Denoiser:
    """The other network of a guidance by "model".

    Args:
        folder: Of its run, or of one of its checkpoints.
        run: What it guides.
        device: Where it computes.

    Raises:
        ValueError: It cannot be loaded, or does not fit the network that it guides.
    """
    model, described = load_export(Path(folder), device)
    _check_weak(folder, described, run.model, run.objective)
    return described.objective.denoiser(model)


def check_guidance(
    recipe: Recipe, model: ModelConfig, objective: Objective, plan: RoutePlan
) -> None:
    """Whether a network can be sampled by this recipe's guidance, before it is trained.

    Args:
        recipe: How to sample.
        model: The network.
        objective: What it is trained with.
        plan: The routes it is trained with.

    Raises:
        ValueError: It cannot: there are no routes, no such tokens or channels, or the weak
            network's folder cannot be used.
    """
    kind, channels = recipe.kind, recipe.guidance_channels
    if channels is not None and channels > model.channels:
        raise ValueError(
            f"guidance_channels is {channels}, but the network has {model.channels} channels."
        )
    if kind in ("routes", "path"):
        RouteGuidance(plan, model.grid, 0, [0])
    if recipe.weak_drop is not None:
        check_drops("guidance by routes", recipe.weak_drop, recipe.strong_drop, equal=True)
        plan.with_drop(recipe.weak_drop).draw(1, model.grid)
    if recipe.weak_run is not None:
        described = load_export(Path(recipe.weak_run))[1]
        _check_weak(recipe.weak_run, described, model, objective)


def _check_weak(folder: str, weak: Description, model: ModelConfig, objective: Objective) -> None:
    for name in ("image_size", "channels", "n_classes"):
        own, other = getattr(model, name), getattr(weak.model, name)
        if own != other:
            raise ValueError(
                f"weak_run: {folder} has {name} {other}, the guided network {own}; they must agree."
            )
    if weak.objective != objective:
        raise ValueError(
            f"weak_run: {folder} was trained with {weak.objective}, the guided network with "
            f"{objective}; they must agree."
        )
