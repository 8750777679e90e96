"""DiM and DiT, dense and routed, on the same data: what notebooks/02_dim_vs_dit.ipynb shows.

    python benchmarks/comparison.py --out benchmarks/results/comparison.json
    python benchmarks/comparison.py --out /tmp/comparison.json --work /tmp/comparison --fast

Trains every arm for several seeds, then evaluates its checkpoints on held-out images. The learning
rate is constant and the averaged weights are what is evaluated, so each checkpoint is a fair end
of a shorter run. What is finished in the work folder is not done again; `train`, `times` and
`gather` do one part only. About an hour with one thread.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import PixelValues, load_emoji
from tread_ssm.evaluation import (
    EmojiFeatures,
    FeatureMoments,
    feature_moments,
    frechet_distance,
    to_batch,
)
from tread_ssm.files import replacing
from tread_ssm.models.cost import backbone_cost
from tread_ssm.pretrained import load_export
from tread_ssm.randomness import generator
from tread_ssm.sampling.generate import Recipe, generate_all
from tread_ssm.sampling.image_grid import decoder, to_uint8
from tread_ssm.timing import take_turns
from tread_ssm.training.batch import BatchMaker
from tread_ssm.training.ema import Ema
from tread_ssm.training.loop import is_finished, train
from tread_ssm.training.metrics import read_metrics
from tread_ssm.training.step import Stepper

BASE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
STRIP_GUIDANCE = 2.0
MODELS = {"dim": "kind: dim, depth: 7, pads: 0", "dit": "kind: dit, depth: 7, heads: 4"}
SHAPE = "image_size: 16, channels: 3, n_classes: 9"


@dataclass(frozen=True)
class Scale:
    """How large the comparison is.

    dims:        width of each backbone; both have 7 blocks and about the FLOPs of each other.
    every:       steps between evaluated checkpoints (held-out loss).
    distance_at: steps at which FD-emoji is taken as well.
    images:      held out of training: for the loss, and as many samples for FD-emoji.
    rates:       learning rates tried for each dense backbone, over `sweep_steps`.
    """

    dims: dict[str, int]
    steps: int
    every: int
    distance_at: tuple[int, ...]
    images: int
    sample_steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    sweep_steps: int
    side_arms: bool
    turns: int


FULL = Scale(
    dims={"dim": 64, "dit": 56},
    steps=2000,
    every=250,
    distance_at=(500, 1000, 1500, 2000),
    images=512,
    sample_steps=10,
    seeds=(0, 1, 2),
    rates=(1e-3, 2e-3, 4e-3, 8e-3),
    sweep_steps=400,
    side_arms=True,
    turns=40,
)
FAST = Scale(
    dims={"dim": 16, "dit": 16},
    steps=8,
    every=4,
    distance_at=(4, 8),
    images=72,
    sample_steps=2,
    seeds=(0,),
    rates=(4e-3,),
    sweep_steps=4,
    side_arms=False,
    turns=2,
)


@dataclass(frozen=True)
class Arm:
    """One way to train. branch: starts from this arm's checkpoint, without routes."""

    name: str
    backbone: str
    label: str
    route: str | None = None
    single_seed: bool = False
    branch: str | None = None


def arms(scale: Scale) -> list[Arm]:
    """The arms in the order in which they are trained: first what matters most."""
    half = "{start: 2, stop: 6, drop: 0.5}"
    main = [
        Arm("dim-dense", "dim", "DiM, dense"),
        Arm("dim-routed", "dim", "DiM, routed", half),
        Arm("dit-dense", "dit", "DiT, dense"),
        Arm("dit-routed", "dit", "DiT, routed", half),
    ]
    if not scale.side_arms:
        return main
    cells = "{start: 2, stop: 6, drop: 0.5, select: {kind: cells, size: 2}}"
    rows = "{start: 2, stop: 6, drop: 0.5, select: {kind: rows}}"
    more, last = "{start: 2, stop: 6, drop: 0.75}", "{start: 2, stop: 7, drop: 0.5}"
    return [
        *main,
        Arm("dim-tail", "dim", "DiM, routed, then dense", half, branch="dim-routed"),
        Arm("dit-tail", "dit", "DiT, routed, then dense", half, branch="dit-routed"),
        Arm("dim-75", "dim", "DiM, drop 0.75", more, single_seed=True),
        Arm("dim-last", "dim", "DiM, route to the last block", last, single_seed=True),
        Arm("dim-cells", "dim", "DiM, 2 x 2 cells", cells, single_seed=True),
        Arm("dit-75", "dit", "DiT, drop 0.75", more, single_seed=True),
        Arm("dim-rows", "dim", "DiM, whole rows", rows, single_seed=True),
    ]


@dataclass(frozen=True)
class Held:
    """The images that no arm trains on, with the noise and t at which each is denoised."""

    x: Tensor
    labels: Tensor
    noise: Tensor
    t: Tensor
    reference: FeatureMoments


def split_data(work: Path, scale: Scale) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write the training part as an .npz; returns its path, and the held-out images and labels."""
    images, labels, names = load_emoji(16)
    order = torch.randperm(len(images), generator=generator(0, 0, "comparison")).numpy()
    held, rest = order[: scale.images], order[scale.images :]
    path = work / "training_images.npz"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images[rest], labels=labels[rest], class_names=np.array(names))
    return path, images[held], labels[held]


def held_out(work: Path, scale: Scale, config: RunConfig) -> Held:
    """The fixed evaluation set; the same for every arm, seed and step."""
    path, images, labels = split_data(work, scale)
    rng = generator(0, 1, "comparison")
    x = to_batch(images).float().div(127.5).sub(1)
    return Held(
        x,
        torch.from_numpy(labels),
        torch.randn(x.shape, generator=rng),
        config.objective.sample_t(len(x), rng),
        _reference(path),
    )


@functools.cache
def _reference(path: Path) -> FeatureMoments:
    """Of the training images' features."""
    with np.load(path, allow_pickle=False) as archive:
        return feature_moments(EmojiFeatures(), to_batch(archive["images"]))


def configure(
    work: Path, scale: Scale, arm: Arm, seed: int, lr: float, name: str, steps: int
) -> RunConfig:
    """configs/quickstart.yaml with what this arm changes."""
    tail = scale.every / steps if arm.branch else 0.0
    return load_config(
        BASE,
        [
            f"name={name}",
            f"out={work}",
            f"seed={seed}",
            f"data={{kind: array, path: {work / 'training_images.npz'}}}",
            f"model={{{MODELS[arm.backbone]}, {SHAPE}, dim: {scale.dims[arm.backbone]}}}",
            f"routing.routes=[{arm.route or ''}]",
            f"routing.schedule.dense_tail={tail}",
            f"train.steps={steps}",
            f"train.optimizer.lr={lr}",
            "train.schedule=constant",
            "train.ema_decay=0.995",
            f"train.save_every={min(scale.every, steps)}",
            f"train.retain={steps}",
            "train.report=false",
            "sample.every=0",
        ],
    )


def run(config: RunConfig) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    data = check(config)
    if not is_finished(config) and train(config, data) is not None:
        raise SystemExit(130)


@torch.no_grad()
def loss_of(folder: Path, held: Held) -> float:
    """Mean loss of the dense network with averaged weights on the fixed evaluation set."""
    model, described = load_export(folder)
    parts = zip(*(t.split(64) for t in (held.x, held.labels, held.t, held.noise)), strict=True)
    losses = [
        described.objective.loss_terms(model, x, labels, t, noise).loss_map.mean(dim=(1, 2, 3))
        for x, labels, t, noise in parts
    ]
    return float(torch.cat(losses).mean())


def distance_of(folder: Path, held: Held, scale: Scale) -> float:
    """FD-emoji of unguided samples, with the held-out labels, from the training images."""
    images = samples(folder, held.labels, scale.sample_steps, guidance=1.0)
    return frechet_distance(feature_moments(EmojiFeatures(), to_batch(images)), held.reference)


def samples(folder: Path, labels: Tensor, steps: int, guidance: float) -> np.ndarray:
    """uint8 (n, H, W, 3) from averaged weights, by DPM-Solver++; image i has the same noise for
    every folder."""
    model, run = load_export(folder)
    recipe = Recipe(steps=steps, guidance=guidance, sampler="dpm_solver_pp")
    decode = decoder(run.values, None, "cpu")
    return generate_all(model, run, recipe, labels, seed=0, decode=decode)


def train_all(work: Path, scale: Scale) -> None:
    """The sweep, then every arm and seed; one result file each."""
    split_data(work, scale)
    rates = {backbone: sweep(work, scale, backbone) for backbone in MODELS}
    jobs = [(arm, seed) for seed in scale.seeds for arm in arms(scale) if not arm.single_seed]
    jobs.sort(key=lambda job: job[0].branch is not None)  # branches need their trunks
    jobs += [(arm, scale.seeds[0]) for arm in arms(scale) if arm.single_seed]
    for arm, seed in jobs:
        lr = best(rates[arm.backbone])
        config = configure(work, scale, arm, seed, lr, f"{arm.name}-{seed}", scale.steps)
        result = work / "results" / f"{config.name}.json"
        if result.is_file():
            continue
        if arm.branch:
            _branch(work, scale, config, f"{arm.branch}-{seed}")
        run(config)
        write_json(result, evaluate(work, scale, config))


def _branch(work: Path, scale: Scale, config: RunConfig, trunk: str) -> None:
    """Start a run from the last but one checkpoint of another."""
    step = scale.steps - scale.every
    if not config.folder.checkpoints():
        shutil.copytree(RunFolder(work / trunk).checkpoint(step), config.folder.checkpoint(step))


def sweep(work: Path, scale: Scale, backbone: str) -> list[dict[str, float]]:
    """Held-out loss of the dense backbone after a short run at each learning rate."""
    arm, tried = Arm(f"{backbone}-sweep", backbone, ""), []
    for lr in scale.rates:
        config = configure(work, scale, arm, 0, lr, f"{arm.name}-{lr:g}", scale.sweep_steps)
        result = work / "results" / f"{config.name}.json"
        if not result.is_file():
            run(config)
            loss = loss_of(config.folder.weights(), held_out(work, scale, config))
            write_json(result, {"lr": lr, "loss": loss})
        tried.append(json.loads(result.read_text(encoding="utf-8")))
    return tried


def best(tried: Sequence[dict[str, float]]) -> float:
    """The learning rate with the least loss."""
    return min(tried, key=lambda row: row["loss"])["lr"]


def evaluate(work: Path, scale: Scale, config: RunConfig) -> dict[str, Any]:
    """Loss at every checkpoint and FD-emoji at some; of seed 0 a picture of samples besides."""
    held, found = held_out(work, scale, config), config.folder.checkpoints()
    if config.routing.schedule.dense_tail:
        found = {scale.steps: found[scale.steps]}  # the checkpoint before belongs to the trunk
    at = {s: folder for s, folder in found.items() if s in scale.distance_at}
    logged = read_metrics(config.folder.metrics)
    result = {
        "training_steps": [row["step"] for row in logged],
        "training_loss": [row["loss"] for row in logged],
        "steps": list(found),
        "loss": [loss_of(folder, held) for folder in found.values()],
        "distance_steps": list(at),
        "distance": [distance_of(folder, held, scale) for folder in at.values()],
    }
    if config.seed == 0:
        labels = torch.arange(9)
        rows = [samples(f, labels, scale.sample_steps, STRIP_GUIDANCE) for f in at.values()]
        picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        (work / "samples").mkdir(exist_ok=True)
        Image.fromarray(picture).save(work / "samples" / f"{config.name}.png", optimize=True)
    return result


def measure_times(work: Path, scale: Scale) -> None:
    """Seconds of a training step of every arm, all arms taking turns; branches have no own."""
    split_data(work, scale)
    sides: dict[str, Callable[[], None]] = {}
    for arm in arms(scale):
        if not arm.branch:
            config = configure(work, scale, arm, 0, 1e-4, arm.name, scale.steps)
            sides[arm.name] = training_step(config)
    seconds = take_turns(sides, scale.turns)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    threads = torch.get_num_threads()
    write_json(work / "times.json", {"threads": threads, "turns": scale.turns, "seconds": medians})


def training_step(config: RunConfig) -> Callable[[], None]:
    """All that a step of the training loop does: batch, forward, backward, AdamW, average."""
    model = config.model.build()
    options = config.train
    ema = Ema(model, options.ema_decay)
    stepper = Stepper.of(config, Accelerator(cpu=True), model, options.optimizer.build(model))
    maker = BatchMaker.of(config, check(config))
    turn = iter(range(options.steps))

    def step() -> None:
        number = next(turn)
        batch = maker.make(number, config.plan, slice(0, options.batch_size))
        stepper.step(batch, options.optimizer.lr)
        ema.update(number)

    return step


def gather(work: Path, scale: Scale, out: Path) -> None:
    """All results as one JSON file, and the pictures of samples in a folder beside it."""
    base = configure(work, scale, arms(scale)[0], 0, 1e-4, "reference", scale.steps)
    held = held_out(work, scale, base)
    everything = {
        "what": (__doc__ or "").splitlines()[0],
        "command": "python benchmarks/comparison.py",
        "machine": _machine(),
        "times": json.loads((work / "times.json").read_text(encoding="utf-8")),
        "batch": base.train.batch_size,
        "training_images": held.reference.count,
        "held_out_images": scale.images,
        "sample_steps": scale.sample_steps,
        "strip_guidance": STRIP_GUIDANCE,
        "distance_of_noise": _distance(held.noise, held),
        "distance_of_held_out_images": _distance(held.x, held),
        "sweep_steps": scale.sweep_steps,
        "sweep": {backbone: sweep(work, scale, backbone) for backbone in MODELS},
        "arms": [row for arm in arms(scale) if (row := _row(work, scale, arm))],
    }
    write_json(out, everything)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms(scale)[:4]:
        name = f"{arm.name}-{scale.seeds[0]}.png"
        if (work / "samples" / name).is_file():
            shutil.copy(work / "samples" / name, folder / f"{arm.name}.png")


def _row(work: Path, scale: Scale, arm: Arm) -> dict[str, Any] | None:
    """What one arm costs and what each of its finished seeds reached; None before the first."""
    runs = {
        str(seed): json.loads(path.read_text(encoding="utf-8"))
        for seed in scale.seeds
        if (path := work / "results" / f"{arm.name}-{seed}.json").is_file()
    }
    if not runs:
        return None
    config = configure(work, scale, arm, 0, 1e-4, arm.name, scale.steps)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    cost = backbone_cost(config.model, config.plan, config.train.batch_size)
    tail = scale.every if arm.branch else 0
    return {
        "name": arm.name,
        "backbone": arm.backbone,
        "label": arm.label,
        "route": arm.route,
        "parameters": parameters,
        "tokens": list(cost.routed.tokens),
        "flops_per_step": cost.routed.training,
        "dense_flops_per_step": cost.dense.training,
        "dense_tail_steps": tail,
        "timed_as": arm.branch or arm.name,
        "tail_timed_as": f"{arm.backbone}-dense",
        "runs": runs,
    }


def _distance(x: Tensor, held: Held) -> float:
    images = to_batch(to_uint8(x, PixelValues()))
    return frechet_distance(feature_moments(EmojiFeatures(), images), held.reference)


def _machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse arguments, do the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "part", nargs="?", default="all", choices=["all", "train", "times", "gather"]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/comparison.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--fast", action="store_true", help="a tiny one, to see that it works")
    options = parser.parse_args()
    scale, work = FAST if options.fast else FULL, options.work.resolve()
    if options.part in ("all", "train"):
        train_all(work, scale)
    if options.part in ("all", "times"):
        measure_times(work, scale)
    if options.part in ("all", "gather"):
        gather(work, scale, options.out)


if __name__ == "__main__":
    main()
