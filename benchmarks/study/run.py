"""One run of the study: trained, measured, and described by one row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.origin import origin
from benchmarks.study.arms import SETTINGS, Arm, Setting
from benchmarks.study.jobs import Job, configure, toy
from benchmarks.study.measure import distance_of, held_out, loss_of, split_data, strips
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.files import replacing
from tread_ssm.report.history import training_flops
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.training.checkpoints.resume import check_folder
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import is_finished, train


def run(work: Path, job: Job, small: bool) -> dict[str, Any]:
    """Train with one thread from the newest checkpoint, measure; returns the row.

    Args:
        work: Folder of the run folders.
        job: What to train, and how far.
        small: With a tiny network and few images, to show that it works.

    Returns:
        `start`: the step from which this run trained; `cpu_seconds`, `wall_seconds`: of the steps
        behind it; `flops`: of all steps from 0, those of a trunk included.
    """
    torch.set_num_threads(1)
    setting, config, data = prepare(work, job, small)
    check_folder(config, data)  # a finished run of an arm that was changed since is not its row
    start = _done(config)
    cpu, wall = time.process_time(), time.time()
    if not is_finished(config) and train(config, data) is not None:
        raise SystemExit(130)
    cpu, wall = time.process_time() - cpu, time.time() - wall
    what = {"arm": job.arm.name, "seed": job.seed, "steps": job.steps, "start": start}
    spent = {"cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1)}
    return what | spent | cost_of(config) | _measured(work, setting, config) | origin()


def prepare(work: Path, job: Job, small: bool) -> tuple[Setting, RunConfig, Data]:
    """What a run needs; arguments as of `run`.

    Raises:
        ConfigError: The arm's parts do not fit each other.
    """
    setting = toy(SETTINGS[job.arm.setting]) if small else SETTINGS[job.arm.setting]
    split_data(work, setting.image_size, setting.held)
    config = configure(work, setting, job)
    return setting, config, check(config)


def _done(config: RunConfig) -> int:
    """Steps behind the checkpoint from which training resumes."""
    newest = max(config.folder.checkpoints(), default=0)
    if newest == 0 and config.train.start_from is not None:
        return int(config.train.start_from.rpartition("-")[2])
    return newest


def cost_of(config: RunConfig) -> dict[str, Any]:
    """Size of the network, and its training FLOPs."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    return {"parameters": parameters, "flops": training_flops(config, [config.train.steps])[0]}


def _measured(work: Path, setting: Setting, config: RunConfig) -> dict[str, Any]:
    """Held-out loss, and FD-emoji of samples without guidance, of the averaged weights."""
    steps, held = config.train.steps, held_out(work, config, setting.held)
    folder = config.folder.checkpoint(steps)
    recipe = Recipe(steps=setting.sample_steps, sampler="dpm_solver_pp")
    logged = next(row for row in read_metrics(config.folder.metrics) if row["step"] == steps)
    measured = steps % setting.distance_every == 0
    return {
        "training_loss": round(logged["loss"], 5),
        "loss": round(loss_of(folder, held), 6),
        "distance": round(distance_of(folder, held, recipe), 4) if measured else None,
    }


def picture(work: Path, arm: Arm, points: Sequence[int], small: bool, out: Path) -> None:
    """Samples of an arm's first seed after each number of steps, from the same noise for all arms.

    Args:
        work: Folder of the run folders.
        arm: Whose checkpoints to sample from.
        points: Steps, a row each.
        small: The runs are toys.
        out: Folder to write NAME.png into; its text "steps" holds the points.
    """
    setting = toy(SETTINGS[arm.setting]) if small else SETTINGS[arm.setting]
    config = configure(work, setting, Job(arm, 0, max(points)))
    folders = [config.folder.checkpoint(steps) for steps in points]
    strip = strips(folders, config.model.n_classes, setting.sample_steps)
    described = PngInfo()
    described.add_text("steps", " ".join(map(str, points)))
    with replacing(out / f"{arm.name}.png") as temporary:
        Image.fromarray(strip).save(temporary, optimize=True, pnginfo=described)
