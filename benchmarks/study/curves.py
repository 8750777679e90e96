"""What each arm reached, over steps, FLOPs and seconds, from the recorded rows.

Arms are compared at equal steps, equal FLOPs and equal seconds. Values between two checkpoints are
interpolated, linearly in the logarithms of both.

Shape legend: S seeds, P evaluated checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from benchmarks.study.arms import Arm, arm_of
from benchmarks.study.results import Row

Axis = Literal["steps", "flops", "seconds"]
Measure = Literal["loss", "distance"]
AXES: tuple[Axis, ...] = ("steps", "flops", "seconds")
MEASURES: tuple[Measure, ...] = ("loss", "distance")
NAMES = {
    "steps": "training steps",
    "flops": "training FLOPs",
    "seconds": "seconds of training, one CPU thread",
    "loss": "held-out loss",
    "distance": "FD-emoji",
}


@dataclass(frozen=True)
class Curve:
    """What one arm reached. steps, flops, seconds: (P,), spent until each checkpoint.

    values: (S, P), one row a seed; lower is better.
    """

    steps: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def spent(self, axis: Axis) -> np.ndarray:
        """(P,) of one axis."""
        return {"steps": self.steps, "flops": self.flops, "seconds": self.seconds}[axis]

    def at(self, axis: Axis, x: float) -> np.ndarray:
        """(S,) values when `x` was spent; NaN before the first and after the last checkpoint.

        Nothing spent means not measured: the row was made of checkpoints of an earlier run.
        """
        spent = self.spent(axis)
        if x <= 0 or not spent[0] * (1 - 1e-9) <= x <= spent[-1] * (1 + 1e-9):
            return np.full(len(self.values), np.nan)
        logs = [np.interp(math.log(x), np.log(spent), np.log(row)) for row in self.values]
        return np.exp(logs)

    def first(self, rows: int) -> Curve:
        """The first seeds only."""
        return Curve(self.steps, self.flops, self.seconds, self.values[:rows])


@dataclass(frozen=True)
class Recorded:
    """One way to train, its cost and its curves.

    Attributes:
        arm: What it is.
        parameters: Of its network.
        training: (steps, loss) of the first seed, as training logs it.
        loss: Of the held-out images.
        distance: FD-emoji of samples without guidance; None: it was not measured.
    """

    arm: Arm
    parameters: int
    training: tuple[np.ndarray, np.ndarray]
    loss: Curve
    distance: Curve | None

    @property
    def label(self) -> str:
        """Of its lines in tables and plots."""
        return self.arm.label

    @property
    def backbone(self) -> str:
        """Which colour it has."""
        return self.arm.backbone

    @property
    def routed(self) -> bool:
        """Whether it is compared with a dense arm."""
        return self.arm.partner is not None

    @property
    def tail(self) -> bool:
        """Whether it ends without routes."""
        return self.arm.trunk is not None

    def curve(self, measure: Measure) -> Curve:
        """The held-out loss or FD-emoji.

        Raises:
            ValueError: FD-emoji was not measured.
        """
        found = self.loss if measure == "loss" else self.distance
        if found is None:
            raise ValueError(f"{self.arm.name}: no FD-emoji is recorded.")
        return found


def recorded(
    rows: Sequence[Row], measured: Mapping[str, float] | None = None
) -> dict[str, Recorded]:
    """The arms that have rows, by name, in the order of their first rows.

    Args:
        rows: Of the results file.
        measured: Seconds of a step by arm, of pace.py. An arm that is missing has the mean of its
            rows, which other work on the machine has lengthened.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)
    paces = {name: pace(mine) for name, mine in found.items()} | dict(measured or {})
    return {name: _recorded(arm_of(name), mine, paces) for name, mine in found.items()}


def pace(rows: Sequence[Row]) -> float:
    """CPU seconds of a step, over all rows of an arm."""
    seconds = sum(r["cpu_seconds"] for r in rows if r["start"] < r["steps"])
    return seconds / max(1, sum(max(0, r["steps"] - r["start"]) for r in rows))


def _recorded(arm: Arm, rows: Sequence[Row], paces: Mapping[str, float]) -> Recorded:
    def curve(measure: Measure) -> Curve | None:
        by_steps: dict[int, dict[int, Row]] = {}
        for row in rows:
            if row[measure] is not None:
                by_steps.setdefault(row["steps"], {})[row["seed"]] = row
        if not by_steps:
            return None
        # Checkpoints that all seeds have which have the first: what is compared is balanced.
        seeds = by_steps[min(by_steps)].keys()
        points = [s for s in sorted(by_steps) if by_steps[s].keys() >= seeds]
        table = [[by_steps[s][seed] for s in points] for seed in sorted(seeds)]
        return Curve(
            np.array(points, dtype=float),
            np.array([row["flops"] for row in table[0]]),
            np.array([_seconds(arm, row, paces) for row in table[0]]),
            np.array([[row[measure] for row in line] for line in table]),
        )

    loss, first = curve("loss"), min(row["seed"] for row in rows)
    assert loss is not None
    mine = [r for r in rows if r["seed"] == first and r["training_loss"] is not None]
    pairs = sorted((r["steps"], r["training_loss"]) for r in mine)
    steps, logged = np.array(pairs, dtype=float).reshape(-1, 2).T
    return Recorded(arm, rows[0]["parameters"], (steps, logged), loss, curve("distance"))


def _seconds(arm: Arm, row: Row, paces: Mapping[str, float]) -> float:
    """CPU seconds from step 0; of a run that starts from a trunk, the trunk's until there."""
    if arm.trunk is None:
        return row["steps"] * paces[arm.name]
    return row["start"] * paces[arm.trunk] + (row["steps"] - row["start"]) * paces[arm.name]


def share_of_flops(arms: Mapping[str, Recorded], name: str) -> float:
    """FLOPs of an arm in its partner's, at equal steps."""
    partner = arms[arms[name].arm.partner or name].loss
    mine = arms[name].loss
    return float(mine.flops[-1] / mine.steps[-1] / (partner.flops[-1] / partner.steps[-1]))


def matched(a: Curve, b: Curve, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Values (S,) of both where the one that ends first has spent all that it spent.

    Only seeds that both have.
    """
    seeds = min(len(a.values), len(b.values))
    x = min(a.spent(axis)[-1], b.spent(axis)[-1])
    return a.first(seeds).at(axis, x), b.first(seeds).at(axis, x)


def reach(a: Curve, b: Curve, axis: Axis) -> np.ndarray:
    """(S,) what b spends until it is as good as a is at its end, as a share of what a spends.

    NaN where b never is, or was already at its first checkpoint, or where nothing was measured.
    """
    seeds = min(len(a.values), len(b.values))
    if a.spent(axis)[-1] <= 0 or b.spent(axis)[0] <= 0:
        return np.full(seeds, math.nan)
    found = []
    for goal, values in zip(a.values[:seeds, -1], b.values[:seeds], strict=True):
        spent = np.log(b.spent(axis))
        after = int(np.argmax(values <= goal))
        if values[after] > goal or after == 0:
            found.append(math.nan)
            continue
        x = np.log(values[[after, after - 1]])
        found.append(math.exp(np.interp(math.log(goal), x, spent[[after, after - 1]])))
    return np.array(found) / a.spent(axis)[-1]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of the seeds, and half the width of its 95 % interval by Student's t; NaN for one."""
    n = len(values)
    if n < 2:
        return float(values.mean()), math.nan
    t = float(student_t.ppf(0.975, n - 1))
    return float(values.mean()), t * float(values.std(ddof=1)) / math.sqrt(n)


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S,) by how much b differs from a, seed by seed: -0.1 is 10 % lower."""
    return b / a - 1
