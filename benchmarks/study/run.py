"""One run of the study: trained, measured, and described by one row."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.arms import SETTINGS, Arm, Setting, configure, toy
from benchmarks.study.measure import distance_of, held_out, loss_of, split_data
from tread_ssm.config.check import check
from tread_ssm.config.run import RunConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.models.cost import backbone_cost
from tread_ssm.sampling.generate import Recipe
from tread_ssm.training.loop import is_finished, train
from tread_ssm.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def run(work: Path, arm: Arm, seed: int, small: bool) -> dict[str, Any]:
    """Train an arm with one thread, measure its checkpoints; returns its row.

    Args:
        work: Folder of the run folders.
        arm: What to train.
        seed: Of the run.
        small: Only show that it works.
    """
    torch.set_num_threads(1)
    setting = toy(SETTINGS[arm.setting]) if small else SETTINGS[arm.setting]
    split_data(work, setting.image_size, setting.held)
    config = configure(work, setting, arm, seed)
    start = 0
    if arm.trunk:
        tail = config.routing.schedule.dense_tail * config.train.steps
        start = config.train.steps - round(tail)
        trunk = RunFolder(work / f"{arm.trunk}-{seed}").checkpoint(start)
        started = replace(arm, overrides=(*arm.overrides, f"train.start_from={trunk}"))
        config = configure(work, setting, started, seed)
    data = check(config)
    cpu, wall = time.process_time(), time.time()
    resumed = bool(config.folder.checkpoints())
    if not is_finished(config) and train(config, data) is not None:
        raise SystemExit(130)
    seconds = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.time() - wall}
    # Of a run that was interrupted, nobody knows the whole time.
    spent = {k: None if resumed else round(v, 1) for k, v in seconds.items()}
    what: dict[str, Any] = {
        "arm": arm.name,
        "seed": seed,
        "trained_steps": config.train.steps - start,
    }
    return what | spent | _cost(config) | _measured(work, setting, config) | origin()


def _cost(config: RunConfig) -> dict[str, Any]:
    """Size of the network, and training FLOPs spent at each checkpoint."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in config.model.build().parameters())
    steps, batch = config.train.steps, config.train.batch_size
    per_step: list[float] = []
    known: dict[str, float] = {}
    for step in range(steps):
        plan = config.routing.schedule.at(config.plan, step, steps)
        if str(plan) not in known:
            known[str(plan)] = backbone_cost(config.model, plan, batch).routed.training
        per_step.append(known[str(plan)])
    return {"parameters": parameters, "flops": sum(per_step), "flops_first_step": per_step[0]}


def _measured(work: Path, setting: Setting, config: RunConfig) -> dict[str, Any]:
    """Loss at every checkpoint and FD-emoji of unguided samples at the last ones."""
    held = held_out(work, config, setting.held)
    found = config.folder.checkpoints()
    last = list(found.items())[len(found) - setting.distances :]
    recipe = Recipe(steps=setting.sample_steps, sampler="dpm_solver_pp")
    logged = read_metrics(config.folder.metrics)
    return {
        "training_steps": [row["step"] for row in logged],
        "training_loss": [round(row["loss"], 5) for row in logged],
        "steps": list(found),
        "loss": [round(loss_of(folder, held), 6) for folder in found.values()],
        "distance_steps": [step for step, _ in last],
        "distance": [round(distance_of(folder, held, recipe), 4) for _, folder in last],
    }


def origin() -> dict[str, str]:
    """Commit, machine and versions."""
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    machine = f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
    return {"commit": commit, "machine": machine}
