"""Drawing images from a network: grids, sets of 50,000, and those that evaluations look at.

Everything random about image number i (its label, its starting noise, the tokens that route
guidance keeps) is a function of the seed and i alone. So image i is the same in every set, in
every batch and on any number of processes, but for what the order of sums does to the last bits:
the same batches give the same bits.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tread_ssm.diffusion import Network, Objective, classifier_free, route_guidance, sample
from tread_ssm.diffusion.sampler import OnStep
from tread_ssm.errors import ConfigError
from tread_ssm.models import ModelConfig
from tread_ssm.pretrained import Export
from tread_ssm.randomness import generator
from tread_ssm.routing import Draw, RoutePlan
from tread_ssm.sampling.image_grid import Decode


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How images are drawn.

    guidance:    scale of the guidance, 1 is none.
    interval:    timesteps at which to guide, see `classifier_free`; not with `weak_drop`.
    weak_drop:   route guidance in place of classifier-free guidance: what the weak pass drops.
    strong_drop: the same of the strong pass.
    sampler:     None: heun for EDM and flow, dpm_solver_pp for noise prediction.
    precision:   bf16 runs the network under autocast; the sampler's own numbers stay float32.
    """

    steps: int
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    weak_drop: float | None = None
    strong_drop: float = 0.0
    sampler: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class Images:
    """Some images of a set: their numbers, labels (B,) int64 and pixels (B, H, W, 3) uint8."""

    numbers: range
    labels: Tensor
    images: np.ndarray


def generate(
    model: nn.Module,
    run: Export,
    recipe: Recipe,
    batches: Iterable[range],
    labels: Tensor,
    *,
    seed: int,
    decode: Decode,
    on_step: OnStep | None = None,
) -> Iterator[Images]:
    """Draw the images of these batches, one batch after the other.

        batches = shares(50_000, batch=64, process=0, processes=2)
        labels = sample_labels(50_000, range(1000), seed=0)
        for drawn in generate(model, run, recipe, batches, labels, seed=0, decode=decode): ...

    model:   as `load_export` gives it, in eval mode, on the device to draw on.
    run:     its description.
    batches: numbers of the images of each batch, see `shares`.
    labels:  (n,) int64, the label of every image of the set.
    decode:  from the model's numbers to uint8 images, see `tread_ssm.sampling.image_grid.decoder`.
    on_step: called after each sampling step of a batch with (steps done, steps).

    Leaves torch's random numbers alone. Raises ValueError.
    """
    device = next(model.parameters()).device
    for numbers in batches:
        mine = labels[numbers.start : numbers.stop].to(device)
        routes = None
        if recipe.weak_drop is not None:
            plan = RoutePlan(run.routes, run.model.depth)
            grid, drops = run.model.grid, (recipe.weak_drop, recipe.strong_drop)
            routes = RouteGuidance(plan, grid, *drops, seed, numbers)
        half = recipe.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            x = sample_images(
                model,
                run.objective,
                noise_of(numbers, run.model, seed).to(device),
                mine,
                null_label=run.model.n_classes,
                steps=recipe.steps,
                guidance=recipe.guidance,
                interval=recipe.interval,
                routes=routes,
                sampler=recipe.sampler,
                on_step=on_step,
            )
        yield Images(numbers, mine.cpu(), decode(x))


def recipe_of(run: Export, options: Mapping[str, Any]) -> Recipe:
    """A run's own way to draw, but for what a command's options say.

    options: all fields of Recipe by name, None where nothing is said; others are not looked at.

    Raises ConfigError.
    """
    guidance, interval = options["guidance"], options["interval"]
    if guidance not in (None, 1) and options["weak_drop"] is None and not run.model.n_classes:
        raise ConfigError(
            f"--guidance is {guidance:g}, but this run was trained without classes; guide it by "
            f"routes (--weak-drop)."
        )
    return Recipe(
        steps=run.sample.steps if options["steps"] is None else options["steps"],
        guidance=run.sample.guidance if guidance is None else guidance,
        interval=None if interval is None else tuple(interval),
        weak_drop=options["weak_drop"],
        strong_drop=options["strong_drop"],
        sampler=options["sampler"] or run.sample.sampler,
        precision=options["precision"],
    )


def shares(n: int, batch: int, process: int = 0, processes: int = 1) -> list[range]:
    """The batches of images 0..n-1 that fall to one process: every so many-th one.

    Where batches are cut does not depend on the number of processes. Raises ValueError.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"A set of {n} images in batches of {batch}: both must be at least 1.")
    every = [range(i, min(i + batch, n)) for i in range(0, n, batch)]
    return every[process::processes]


def sample_labels(n: int, classes: Sequence[int], seed: int, *, balanced: bool = False) -> Tensor:
    """(n,) int64, the labels of images 0..n-1: each drawn evenly from `classes`.

    balanced: in turn instead, so that no class is drawn more than once more than another.
    """
    chosen = torch.tensor(list(classes), dtype=torch.int64)
    if balanced:
        return chosen[torch.arange(n) % len(chosen)]
    streams = (generator(seed, i, "sample label") for i in range(n))
    return chosen[torch.stack([torch.randint(len(chosen), (), generator=g) for g in streams])]


def noise_of(images: Sequence[int], model: ModelConfig, seed: int) -> Tensor:
    """(B, C, H, W) float32 on the CPU, the starting noise of the images with these numbers."""
    shape = (model.channels, model.image_size, model.image_size)
    rows = [torch.randn(shape, generator=generator(seed, i, "sample")) for i in images]
    return torch.stack(rows)


def starting_noise(n: int, model: ModelConfig, seed: int) -> Tensor:
    """(n, C, H, W) float32 on the CPU, the starting noise of images 0..n-1."""
    return noise_of(range(n), model, seed)


@dataclass(frozen=True)
class RouteGuidance:
    """Guide by two passes that drop differently, see `tread_ssm.diffusion.route_guidance`.

    images: numbers of the images in the batch. Raises ValueError.
    """

    plan: RoutePlan
    grid: tuple[int, int]
    weak_drop: float
    strong_drop: float
    seed: int
    images: Sequence[int]

    def __post_init__(self) -> None:
        if not self.plan.routes:
            raise ValueError("Route guidance needs a network that was trained with routes.")

    def draw(self, plan: RoutePlan, t: float) -> Draw:
        """What `plan` keeps of each image: a function of the seed, its number and t."""
        purpose = f"sample routes at {t.hex()}"
        rows = [plan.draw(1, self.grid, generator(self.seed, i, purpose)) for i in self.images]
        return tuple(
            (route, replace(subset, index=torch.cat([row[k][1].index for row in rows])))
            for k, (route, subset) in enumerate(rows[0])
        )


@torch.no_grad()
def sample_images(
    network: Network,
    objective: Objective,
    noise: Tensor,
    labels: Tensor,
    *,
    null_label: int,
    steps: int,
    guidance: float,
    interval: tuple[float, float] | None = None,
    routes: RouteGuidance | None = None,
    sampler: str | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Samples (B, C, H, W) float32 for noise (B, C, H, W) and labels (B,) on one device.

    null_label: the network's label for "no class"; 0: it has no classes, and is guided by routes
                alone.
    guidance:   1 is none.
    interval:   timesteps at which to guide, see `classifier_free`; not with `routes`.
    routes:     the two passes of route guidance, in place of classifier-free guidance.
    sampler:    None: heun for EDM and flow, dpm_solver_pp for noise prediction.

    Raises ValueError.
    """
    denoiser = objective.denoiser(network)
    if routes is not None:
        if interval is not None:
            raise ValueError("An interval belongs to classifier-free guidance, not to routes.")
        denoiser = route_guidance(
            denoiser, routes.plan, guidance, routes.weak_drop, routes.strong_drop, routes.draw
        )
    elif null_label > 0:
        denoiser = classifier_free(denoiser, guidance, null_label, interval)
    timesteps = objective.timesteps(steps)
    return sample(denoiser, objective, noise, timesteps, labels, sampler=sampler, on_step=on_step)
