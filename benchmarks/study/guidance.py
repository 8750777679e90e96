"""FD-emoji with guidance, of recorded runs: none, classifier-free, by routes.

The scale that counts for a seed is the best one of the other seeds, so that no seed chooses for
itself. Route guidance extrapolates from a pass that drops what the arm dropped in training.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.origin import origin
from benchmarks.study.arms import SETTINGS, arm_of
from benchmarks.study.jobs import Job, configure, toy
from benchmarks.study.measure import distance_of, held_out
from benchmarks.study.results import Row
from tread_ssm.sampling.recipe import Recipe
from tread_ssm.tables import markdown_table

SCALES = {"none": (1.0,), "classifier-free": (1.5, 2.0, 3.0, 5.0), "route": (1.5, 2.0, 3.0, 5.0)}


def guided(row: Row, work: Path, small: bool, done: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The rows that are missing of a recorded run: one a kind of guidance and scale.

    Args:
        row: The run; its checkpoint must lie in the work folder.
        work: Folder of the run folders.
        small: The run is a toy.
        done: Rows that are there.
    """
    torch.set_num_threads(1)
    setting = SETTINGS[arm_of(row["arm"]).setting]
    setting = toy(setting) if small else setting
    config = configure(work, setting, Job(arm_of(row["arm"]), row["seed"], row["steps"]))
    folder, held = config.folder.checkpoint(row["steps"]), held_out(work, config, setting.held)
    known = {(r["arm"], r["seed"], r["steps"], r["kind"], r["scale"]) for r in done}
    what = {name: row[name] for name in ("arm", "seed", "steps")}
    for kind, scales in SCALES.items():
        if kind == "route" and not config.routing.routes:
            continue
        weak = config.routing.routes[0].drop if kind == "route" else None
        for scale in scales:
            if (*what.values(), kind, scale) in known:
                continue
            recipe = Recipe(
                steps=setting.sample_steps,
                guidance=scale,
                weak_drop=weak,
                sampler="dpm_solver_pp",
            )
            distance = round(distance_of(folder, held, recipe), 4)
            yield what | {"kind": kind, "scale": scale, "distance": distance} | origin()


def chosen(rows: Sequence[Row], arm: str, steps: int, kind: str) -> dict[int, float]:
    """FD-emoji by seed, each at the scale that is best for the mean of the other seeds."""
    mine = [r for r in rows if (r["arm"], r["steps"], r["kind"]) == (arm, steps, kind)]
    seeds = {r["seed"] for r in mine}
    times = Counter(r["scale"] for r in mine)  # a scale that some seeds lack is left out
    mine = [r for r in mine if times[r["scale"]] == len(seeds)]
    found = {}
    for seed in sorted({r["seed"] for r in mine}):
        others: dict[float, list[float]] = {}
        for r in mine:
            if r["seed"] != seed:
                others.setdefault(r["scale"], []).append(r["distance"])
        if others:
            best = min(others, key=lambda scale: statistics.mean(others[scale]))
            own = {r["scale"]: r["distance"] for r in mine if r["seed"] == seed}
            found[seed] = own[best]
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: FD-emoji of each arm by kind of guidance, mean and deviation over the seeds."""
    lines = []
    for arm, steps in dict.fromkeys((r["arm"], r["steps"]) for r in rows):
        cells = []
        for kind in SCALES:
            values = list(chosen(rows, arm, steps, kind).values())
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        lines.append([arm_of(arm).label, str(steps), *cells])
    return markdown_table(["FD-emoji", "steps", *SCALES], lines)
