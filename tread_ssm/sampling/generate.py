"""Images from a network: image grids, sets of 50,000, and those that evaluations look at.

Everything random about image number i (its label, its noise, the tokens that route guidance keeps)
is a function of the seed and i alone. So image i is the same in every set, in every batch and on
any number of processes, but for what the order of sums does to the last bits: the same batches
give the same bits.

Shape legend: B batch, C channels, H rows, W columns, n images of a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tread_ssm.diffusion import Denoiser, Network, Objective, sample
from tread_ssm.diffusion.sampler import Fresh, OnStep
from tread_ssm.machine import out_of_memory
from tread_ssm.models import ModelConfig
from tread_ssm.pretrained import Description
from tread_ssm.randomness import generator
from tread_ssm.routing import RoutePlan
from tread_ssm.sampling.guidance import RouteGuidance, guided, weak_denoiser
from tread_ssm.sampling.image_grid import Decode
from tread_ssm.sampling.recipe import Recipe


@dataclass(frozen=True)
class Samples:
    """Some images of a set.

    Attributes:
        numbers: Of the images in the set.
        labels: (B,) int64, on the CPU.
        images: (B, H, W, 3) uint8.
        at_once: How many of them were sampled at once.
    """

    numbers: range
    labels: Tensor
    images: np.ndarray
    at_once: int


def generate(
    model: nn.Module,
    run: Description,
    recipe: Recipe,
    batches: Iterable[range],
    labels: Tensor,
    *,
    seed: int,
    decode: Decode,
    on_step: OnStep | None = None,
) -> Iterator[Samples]:
    """Sample the images of these batches, one batch after the other.

        batches = shares(50_000, batch=64, process=0, processes=2)
        labels = sample_labels(50_000, range(1000), seed=0)
        for part in generate(model, run, recipe, batches, labels, seed=0, decode=decode): ...

    Torch's global random state is left alone. Where a batch does not fit into the memory, half as
    many images are sampled and decoded at once from there on. Where a single one does not, the two
    passes of classifier-free guidance run one after the other. Not so where FSDP2 shards the
    weights: processes gather them together, and have to call the network equally often.

    Args:
        model: As `load_export` gives it, in eval mode, on the device to sample on.
        run: Its description.
        recipe: How to sample.
        batches: Numbers of the images of each batch, see `shares`.
        labels: (n,) int64, the label of every image of the set.
        seed: Of the set.
        decode: From the model's numbers to images, see `tread_ssm.sampling.image_grid.decoder`.
        on_step: Called after each sampling step of a batch with (steps done, steps).

    Raises:
        ValueError: The recipe does not fit the model, or what it samples is not finite.
        torch.OutOfMemoryError: Not even one image fits, or the weights are sharded. On a CPU, torch
            raises RuntimeError.
    """
    device = next(model.parameters()).device
    weak = None if recipe.weak_run is None else weak_denoiser(recipe.weak_run, run, device)
    twice = recipe.kind == "class" and recipe.guidance != 1
    most: int | None = None  # images at once, where a whole batch did not fit into the memory
    apart = False
    for numbers in batches:
        parts: list[np.ndarray] = []
        rest = numbers
        while rest:
            now = rest if most is None else rest[:most]
            try:
                x = _sampled(model, run, recipe, weak, now, labels, seed, on_step, apart)
                parts.append(decode(x))
                rest = rest[len(now) :]
            except (RuntimeError, MemoryError) as error:
                last = len(now) == 1 and (apart or not twice)
                if not out_of_memory(error) or last or _is_sharded(model):
                    raise
                apart = len(now) == 1
                most = max(1, len(now) // 2)
        own = labels[numbers.start : numbers.stop].cpu()
        yield Samples(numbers, own, np.concatenate(parts), most or len(numbers))


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule  # seldom needed, and slow to import

    return any(isinstance(module, FSDPModule) for module in model.modules())


def _sampled(
    model: nn.Module,
    run: Description,
    recipe: Recipe,
    weak: Denoiser | None,
    numbers: range,
    labels: Tensor,
    seed: int,
    on_step: OnStep | None,
    apart: bool,
) -> Tensor:
    """The images of these numbers in the model's own numbers, sampled at once.

    Raises ValueError where one is not finite.
    """
    device = next(model.parameters()).device
    routes = None
    if recipe.kind in ("routes", "path"):
        plan = RoutePlan(run.routes, run.model.depth)
        routes = RouteGuidance(plan, run.model.grid, seed, numbers)
    x = sample_batch(
        model,
        run.objective,
        noise_of(numbers, run.model, seed).to(device),
        labels[numbers.start : numbers.stop].to(device),
        recipe,
        null_label=run.model.n_classes,
        routes=routes,
        weak=weak,
        fresh=partial(_step_noise, numbers, run.model, seed, device),
        on_step=on_step,
        apart=apart,
    )
    if not bool(x.isfinite().all()):
        bad = [i for i, image in zip(numbers, x, strict=True) if not image.isfinite().all()]
        raise ValueError(
            f"{len(bad)} of {len(numbers)} images are not finite, image {bad[0]} the first: the "
            f"weights (of step {run.step}) are damaged, or guidance {recipe.guidance:g} is too "
            f"strong."
        )
    return x


def generate_all(
    model: nn.Module,
    run: Description,
    recipe: Recipe,
    labels: Tensor,
    *,
    seed: int,
    decode: Decode,
    batch: int = 64,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """All images of a set, in this process.

    Args:
        model, run, recipe, seed, decode, on_step: As for `generate`.
        labels: (n,) int64.
        batch: Images at once.

    Returns:
        (n, H, W, 3) uint8.

    Raises:
        ValueError: As `generate`.
    """
    batches = shares(len(labels), batch)
    parts = generate(model, run, recipe, batches, labels, seed=seed, decode=decode, on_step=on_step)
    return np.concatenate([part.images for part in parts])


def shares(n: int, batch: int, process: int = 0, processes: int = 1) -> list[range]:
    """The batches of images 0..n-1 that fall to one process: every so many-th one.

    Where batches are cut does not depend on the number of processes.

    Args:
        n: Images of the set.
        batch: Images of a batch; the last one may have fewer.
        process: Number of the process.
        processes: How many there are.

    Raises:
        ValueError: `n` or `batch` is less than 1.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"A set of {n} images in batches of {batch}: both must be at least 1.")
    every = [range(i, min(i + batch, n)) for i in range(0, n, batch)]
    return every[process::processes]


def sample_labels(n: int, classes: Sequence[int], seed: int, *, balanced: bool = False) -> Tensor:
    """Labels of images 0..n-1, each taken evenly from `classes`.

    Args:
        n: Number of images.
        classes: Labels to take from.
        seed: Of the set.
        balanced: In turn instead, so that no class occurs more than once more than another.

    Returns:
        (n,) int64.
    """
    chosen = torch.tensor(list(classes), dtype=torch.int64)
    if balanced:
        return chosen[torch.arange(n) % len(chosen)]
    streams = (generator(seed, i, "sample label") for i in range(n))
    return chosen[torch.stack([torch.randint(len(chosen), (), generator=g) for g in streams])]


def noise_of(
    images: Sequence[int], model: ModelConfig, seed: int, purpose: str = "sample"
) -> Tensor:
    """Noise that is a function of the seed and the image's number.

    Args:
        images: Numbers of B images of the set.
        model: Its config, for the shape.
        seed: Of the set.
        purpose: Noise of another purpose is independent of this one.

    Returns:
        (B, C, H, W) float32 on the CPU, standard normal.
    """
    shape = (model.channels, model.image_size, model.image_size)
    rows = [torch.randn(shape, generator=generator(seed, i, purpose)) for i in images]
    return torch.stack(rows)


def _step_noise(
    images: Sequence[int], model: ModelConfig, seed: int, device: torch.device, step: int
) -> Tensor:
    """What a stochastic sampler adds to the images in a step."""
    return noise_of(images, model, seed, f"sample step {step}").to(device)


@torch.no_grad()
def sample_batch(
    network: Network,
    objective: Objective,
    noise: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    null_label: int,
    routes: RouteGuidance | None = None,
    weak: Denoiser | None = None,
    fresh: Fresh | None = None,
    on_step: OnStep | None = None,
    apart: bool = False,
) -> Tensor:
    """Sample one batch.

    Args:
        network: The backbone, in eval mode.
        objective: The one it was trained with.
        noise: (B, C, H, W) standard normal numbers.
        labels: (B,) int64, on the same device.
        recipe: How to sample.
        null_label: The network's label for "no class". 0: it has no classes, so guidance by class
            has no effect.
        routes: Chooses the tokens where the recipe guides by routes or path.
        weak: The other network, where the recipe guides by "model".
        fresh: Noise of each step, for stochastic samplers.
        on_step: Called after each step with (steps done, steps).
        apart: As in `classifier_free`.

    Returns:
        (B, C, H, W), the dtype of `noise`.

    Raises:
        ValueError: The recipe does not fit the network or the objective.
    """
    denoiser = guided(objective.denoiser(network), recipe, null_label, routes, weak, apart)
    half = recipe.precision == "bf16"
    with torch.autocast(noise.device.type, torch.bfloat16) if half else nullcontext():
        return sample(
            denoiser,
            objective,
            noise,
            objective.timesteps(recipe.steps),
            labels,
            sampler=recipe.sampler,
            fresh=fresh,
            on_step=on_step,
        )
