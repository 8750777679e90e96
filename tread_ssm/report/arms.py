"""Runs that are compared: those that differ in their seed alone are one arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tread_ssm.config.run import RunConfig
from tread_ssm.plots.compare import Curve
from tread_ssm.plots.runs import smooth
from tread_ssm.report.history import History, Row, training_flops


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration with different seeds.

    Attributes:
        name: What to call it.
        runs: At least one.
        flops: Per run, FLOPs behind each logged row.
    """

    name: str
    runs: tuple[History, ...]
    flops: tuple[tuple[float, ...], ...]


def arms_of(runs: Sequence[History]) -> list[Arm]:
    """The runs, those that differ in seed (and name) alone together."""
    groups: dict[RunConfig, list[History]] = {}
    for run in runs:
        groups.setdefault(replace(run.config, name="_", out="_", seed=0), []).append(run)
    arms = []
    for own in groups.values():
        names = [run.config.name for run in own]
        shared = _common_start(names).rstrip("-_. =")
        steps = [tuple(row["step"] for row in run.rows) for run in own]
        flops = tuple(tuple(training_flops(own[0].config, s)) for s in steps)
        arms.append(Arm(shared if len(own) > 1 and shared else names[0], tuple(own), flops))
    return _distinct(arms)


def _common_start(names: Sequence[str]) -> str:
    """What all names begin with, but for the number of a seed: "dense" of dense-0 and dense-1."""
    letters = zip(*names, strict=False)
    same = next((i for i, own in enumerate(letters) if len(set(own)) > 1), min(map(len, names)))
    return names[0][:same]


def _distinct(arms: list[Arm]) -> list[Arm]:
    """Arms whose names differ; where they did not, the folder of the first run is added."""
    names = [arm.name for arm in arms]
    return [
        arm
        if names.count(arm.name) == 1
        else replace(arm, name=f"{arm.name} ({arm.runs[0].folder.path})")
        for arm in arms
    ]


def measures_of(arms: Sequence[Arm]) -> dict[str, list[Curve]]:
    """Curves by measure: the training loss, and whatever was evaluated."""
    found: dict[str, list[Curve]] = {}
    for arm in arms:
        for run, flops in zip(arm.runs, arm.flops, strict=True):
            # A row whose steps all dropped the path has no loss of kept tokens.
            losses = [row["kept_loss"] or row["loss"] for row in run.rows]
            if min(losses) > 0:
                smoothed = smooth(losses, max(1.0, len(losses) / 40))
                found.setdefault("training loss", []).append(
                    _curve(arm, run, run.rows, flops, smoothed)
                )
            if _can_be_shown(run.rows, "validation_loss"):
                curve = _evaluated(arm, run, run.rows, "validation_loss")
                found.setdefault("validation loss", []).append(curve)
            for name, title in run.measures.items():
                if _can_be_shown(run.evals, name):
                    found.setdefault(title, []).append(_evaluated(arm, run, run.evals, name))
    return found


def _can_be_shown(rows: Sequence[Row], name: str) -> bool:
    """Whether rows have values of it, and a logarithmic scale can show them."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and min(values) > 0


def _evaluated(arm: Arm, run: History, rows: Sequence[Row], name: str) -> Curve:
    there = [row for row in rows if row.get(name) is not None]
    flops = training_flops(run.config, [row["step"] for row in there])
    return _curve(arm, run, there, flops, [row[name] for row in there])


def _curve(
    arm: Arm, run: History, rows: Sequence[Row], flops: Sequence[float], values: Sequence[float]
) -> Curve:
    steps = [row["step"] for row in rows]
    seconds = [run.seconds_at(step) for step in steps]
    return Curve(arm.name, {"steps": steps, "FLOPs": flops, "seconds": seconds}, values)
