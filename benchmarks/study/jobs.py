"""The runs of the study, their order, and the configuration of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.study.arms import Arm, Setting, arm_of
from benchmarks.study.results import Row, key
from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder

BASE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Job:
    """A row to be made: an arm and a seed, trained to `steps` steps.

    With a constant rate it resumes where the row of fewer steps ended.
    """

    arm: Arm
    seed: int
    steps: int


# A quarter of the quickstart's steps with Mamba-1, and for the other mixers what their steps leave
# of the same time: 1.07, 1.65 and 1.06 times Mamba-1's, with AVX-512, taking turns.
_QUICK = {"quick-mamba1": 1000, "quick-mamba2": 940, "quick-mamba3": 605, "quick-hybrid": 940}
# What is done at any moment is balanced over the seeds: (arms, seeds, steps).
_MAIN = ("dim-dense", "dim-50", "dim-75")
_DITS = ("dit-dense", "dit-50", "modern-dense", "modern-50")
_OTHERS = ("dim3-dense", "dim3-50", "hybrid-dense", "hybrid-50", "zig-dense", "zig-50")
_VARIANTS = (
    *("rows", "cells", "segments", "gap", "distance", "pads", "pads-routed"),
    *("sra2", "dispersive", "muon"),
)
_ORDER: tuple[tuple[tuple[str, ...], tuple[int, ...], int], ...] = (
    (_MAIN, (0, 1, 2), 300),
    (_MAIN, (0, 1, 2), 150),
    (_MAIN, (0, 1, 2), 600),
    (_MAIN, (0, 1, 2), 1200),
    (("dim-50-tail",), (0, 1, 2), 600),
    (("dim-50-tail",), (0, 1, 2), 1200),
    (("dim-dense-lr0.004", "dim-50-lr0.004", "dim-dense-lr0.001", "dim-50-lr0.001"), (0,), 300),
    (("dim-fuse",), (0, 1, 2), 1200),
    (("dim-fuse-tail",), (0, 1, 2), 1200),
    (("dit-dense-lr0.004", "dit-50-lr0.004", "dit-dense-lr0.001", "dit-50-lr0.001"), (0,), 300),
    (_DITS, (0,), 1200),
    (("dim2-dense", "dim2-50"), (0,), 1200),
    (_OTHERS, (0,), 1200),
    (tuple(f"dim-{name}" for name in _VARIANTS), (0,), 1200),
    (("dim-muon-dense",), (0,), 1200),
    (_DITS, (1, 2), 1200),
    (("dim2-dense", "dim2-50"), (1, 2), 1200),
    (_OTHERS, (1, 2), 1200),
    (("t64-dim-dense", "t64-dim-50", "t64-dit-dense", "t64-dit-50"), (0, 1, 2), 2000),
    (("t64-dim-50-tail", "t64-dit-50-tail"), (0, 1, 2), 2000),
    (("t64-dim-75", "t64-dim-last", "t64-dim-cells", "t64-dim-rows", "t64-dit-75"), (0,), 2000),
)


def jobs() -> list[Job]:
    """Every run of the study in the order in which they are made."""
    quick = [Job(arm_of(name), seed, n) for seed in (0, 1, 2) for name, n in _QUICK.items()]
    rest = [Job(arm_of(n), seed, steps) for a, seeds, steps in _ORDER for seed in seeds for n in a]
    return quick[:4] + rest[:12] + quick[4:8] + rest[12:30] + quick[8:] + rest[30:]


def wanted(only: list[str], seeds: list[int], steps: int | None) -> list[Job]:
    """The runs that are asked for, in the order of the study.

    Args:
        only: Names of arms; none: all.
        seeds: Seeds; none: those of the study.
        steps: Steps; None: those of the study.
    """
    known = {arm_of(name).name for name in only}  # a name that is none is refused
    chosen = [job for job in jobs() if not only or job.arm.name in known]
    if only and seeds and steps:
        chosen = [Job(arm_of(name), seed, steps) for seed in seeds for name in only]
    chosen = [job for job in chosen if job.seed in (seeds or [job.seed])]
    return [job for job in chosen if job.steps == (steps or job.steps)]


def missing(chosen: Iterable[Job], rows: Iterable[Row]) -> list[Job]:
    """The runs that have no row yet."""
    done = set(map(key, rows))
    return [job for job in chosen if (job.arm.name, job.seed, job.steps) not in done]


TOY_STEPS = 8


def toy(setting: Setting) -> Setting:
    """The same at a size that only shows that it works."""
    small = ("model.dim=16", "train.log_every=2", "train.warmup=2")
    smaller = replace(setting, image_size=16, held=72, sample_steps=2, distance_every=1)
    return replace(smaller, save_every=1, last=small)


def configure(work: Path, setting: Setting, job: Job) -> RunConfig:
    """The configuration of a run whose folder is made in `work`."""
    arm, size, steps = job.arm, setting.image_size, job.steps
    given = [
        f"name={arm.name}-{job.seed}",
        f"out={work}",
        f"seed={job.seed}",
        f"data={{kind: array, path: {work / f'training_images_{size}.npz'}}}",
        f"train.steps={steps}",
        f"train.optimizer.lr={arm.rate}",
        f"train.save_every={setting.save_every}",
        f"train.retain={steps}",
        "train.threads=1",
        "train.report=false",
        "sample.every=0",
    ]
    last = [f"model.image_size={size}", *setting.last]
    config = load_config(BASE, [*given, *setting.overrides, *arm.overrides, *last])
    if arm.trunk is None:
        return config
    begin = steps - round(config.routing.schedule.dense_tail * steps)
    trunk = RunFolder(work / f"{arm.trunk}-{job.seed}").checkpoint(begin)
    started = replace(config.train, start_from=str(trunk))
    return replace(config, name=f"{config.name}-{steps}", train=started)
