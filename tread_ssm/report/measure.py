"""What a report measures anew: the step time of a run's own model, and FD-emoji of its samples.

Shape legend: n images, H rows, W columns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data, Pixels
from tread_ssm.evaluation import EmojiFeatures, statistics, to_batch
from tread_ssm.evaluation.evaluator import Evaluator
from tread_ssm.pretrained import load_export
from tread_ssm.randomness import generator
from tread_ssm.routing import RoutePlan
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import decoder, to_uint8
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.timing import median_of_pairs, take_turns
from tread_ssm.training.batch import Batch, BatchMaker
from tread_ssm.training.heads import with_heads
from tread_ssm.training.step import Stepper

# The global batch of a run on many devices would not fit into one.
_MOST_IMAGES = 64

SAMPLE_STEPS = 16

_BATCH = 256  # images whose features are taken at once


@dataclass(frozen=True)
class StepTimes:
    """Medians over interleaved training steps.

    Attributes:
        batch: Images of a step.
        repeats: Steps of each kind.
        dense: Seconds of a step without routes.
        routed: Seconds of a routed step. None without routes.
        share: Median of routed / dense, turn by turn. None without routes.
    """

    batch: int
    repeats: int
    dense: float
    routed: float | None
    share: float | None


def step_times(
    config: RunConfig, data: Data, model: nn.Module, seconds: float = 8.0, most: int = 15
) -> StepTimes:
    """Time the real training step of a model, dense and routed taking turns.

    Args:
        config: The run's.
        data: The run's.
        model: On the device to be measured. Its gradients are used; its weights stay (lr is 0).
        seconds: About how long it may take; at least three turns are made.
        most: Turns at most.
    """
    stepper = stepper_of(config, model)
    group = math.lcm(*(loss.together for loss in config.auxiliary))
    size = min(config.train.batch_size, max(1, _MOST_IMAGES // group) * group)
    dense = step_of(config, data, stepper, RoutePlan((), config.model.depth), size)
    sides = {"dense": dense}
    if config.plan.routes:
        sides["routed"] = step_of(config, data, stepper, config.plan, size)
    dense()
    start = time.perf_counter()
    dense()
    spent = time.perf_counter() - start
    repeats = max(3, min(most, int(seconds / (len(sides) * max(spent, 1e-6))) - 1))
    times = take_turns(sides, repeats)
    routed = times.get("routed")
    return StepTimes(
        batch=size,
        repeats=repeats,
        dense=median(times["dense"]),
        routed=median(routed) if routed else None,
        share=median_of_pairs(routed, times["dense"]) if routed else None,
    )


def stepper_of(config: RunConfig, model: nn.Module) -> Stepper:
    """What makes the training steps of a run, with its own optimiser and no other processes."""
    options = config.train
    accelerator = Accelerator(
        mixed_precision="no" if options.precision == "fp32" else options.precision
    )
    model = with_heads(model, config.auxiliary).train().requires_grad_(True)
    # evaluation_mode: autocast as in training, but no wrapper that waits for other processes.
    module = accelerator.prepare_model(model, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(config.train.optimizer.build(model))
    return Stepper.of(config, accelerator, module, optimizer)


def step_of(
    config: RunConfig, data: Data, stepper: Stepper, plan: RoutePlan, size: int
) -> Callable[[], None]:
    """A training step of lr 0 on four batches of `size` images in turn, made beforehand."""
    maker = BatchMaker.of(config, data, size)
    device = stepper.accelerator.device
    batches: Sequence[Batch] = [
        maker.make(step, plan, slice(0, size)).to(device) for step in range(4)
    ]
    turn = cycle(batches)

    def step() -> None:
        stepper.step(next(turn), lr=0.0)

    return step


@dataclass(frozen=True)
class Distances:
    """FD-emoji of sets of images of equal size against one reference.

    Attributes:
        images: Images per set.
        reference: Real images that the sets are compared with.
        values: The distance by name of the set, the worst (noise) first, real images last.
    """

    images: int
    reference: int
    values: Mapping[str, float]


def emoji_distances(
    data: Pixels, sets: Mapping[str, Callable[[Tensor], Tensor]], images: int, seed: int
) -> Distances:
    """FD-emoji of noise, of sets of samples, and of real images that are not in the reference.

    The real images are split: `images` of them lend their labels to the samples and stand for
    what a perfect sampler would reach; the rest is the reference. All sets have the same size,
    because the distance shrinks with it.

    Args:
        data: The embedded emoji.
        sets: By name, labels (n,) int64 -> uint8 images (n, 3, H, W).
        images: Images per set.
        seed: Of the split and of the noise.

    Raises:
        ValueError: A set or the reference would be too small.
    """
    least = EmojiFeatures.dimension + 1
    if not least <= images <= len(data.labels) - least:
        raise ValueError(
            f"emoji_distances: images is {images}; with {EmojiFeatures.dimension} features and "
            f"{len(data.labels)} real images it must lie in {least}..{len(data.labels) - least}."
        )
    rng = generator(seed, 0, "report")
    order = torch.randperm(len(data.labels), generator=rng)
    real = to_batch(data.images)
    labels = torch.from_numpy(data.labels)[order[:images]]
    extractor = EmojiFeatures()
    reference = statistics(extractor, real[order[images:]].split(_BATCH), ["fid"])
    evaluator = Evaluator(extractor, ["fid"], reference)

    def distance(x: Tensor) -> float:
        return evaluator.score(x.split(_BATCH)).values["fid"]

    noise = torch.randn(images, *data.shape, generator=rng)
    values = {"noise": distance(to_batch(to_uint8(noise, data.values)))}
    values |= {name: distance(samples(labels)) for name, samples in sets.items()}
    values["other real images"] = distance(real[order[:images]])
    return Distances(images, len(real) - images, values)


def generate_from(
    folder: Path, labels: Tensor, guidance: float, seed: int, device: torch.device
) -> Tensor:
    """Samples from the averaged weights in `folder`: uint8 (n, 3, H, W), on the CPU.

    By DPM-Solver++ with SAMPLE_STEPS steps, enough for a distance whatever the objective.
    """
    model, run = load_export(folder, device)
    recipe = Recipe(steps=SAMPLE_STEPS, guidance=guidance, sampler="dpm_solver_pp")
    decode = decoder(run.values, None, device)
    return to_batch(generate_all(model, run, recipe, labels, seed=seed, decode=decode))
