"""Reads and plots recorded comparisons (benchmarks/comparison.py), and timings that took turns.

Arms are compared at equal steps, equal FLOPs and equal seconds. Values between two checkpoints are
interpolated, linearly in the logarithms of both.

Shape legend: S seeds, P evaluated checkpoints.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from tread_ssm.plots.colours import BACKBONE, INK, PALE, new_figure, plain

Axis = Literal["steps", "flops", "seconds"]
Measure = Literal["loss", "distance"]
AXES: tuple[Axis, ...] = ("steps", "flops", "seconds")
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
        """(S,) values when `x` was spent; NaN before the first and after the last checkpoint."""
        spent = self.spent(axis)
        if not spent[0] * (1 - 1e-9) <= x <= spent[-1] * (1 + 1e-9):
            return np.full(len(self.values), np.nan)
        logs = [np.interp(math.log(x), np.log(spent), np.log(row)) for row in self.values]
        return np.exp(logs)

    def first(self, rows: int) -> Curve:
        """The first seeds only."""
        return Curve(self.steps, self.flops, self.seconds, self.values[:rows])


@dataclass(frozen=True)
class Arm:
    """One way to train, its cost and its curves. training: (steps, mean loss over the seeds)."""

    name: str
    backbone: str
    label: str
    routed: bool
    tail: bool
    parameters: int
    training: tuple[np.ndarray, np.ndarray]
    loss: Curve
    distance: Curve

    def curve(self, measure: Measure) -> Curve:
        """The held-out loss or FD-emoji."""
        return self.loss if measure == "loss" else self.distance


@dataclass(frozen=True)
class Comparison:
    """A recorded comparison. facts: everything else that the file says; folder: its pictures."""

    arms: Mapping[str, Arm]
    facts: Mapping[str, Any]
    folder: Path


def read_comparison(path: str | Path) -> Comparison:
    """Read what benchmarks/comparison.py wrote. Raises OSError, KeyError."""
    path = Path(path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    seconds = facts["times"]["seconds"]
    arms = {row["name"]: _arm(row, seconds) for row in facts.pop("arms")}
    return Comparison(arms, facts, path.with_suffix(""))


def _arm(row: Mapping[str, Any], seconds: Mapping[str, float]) -> Arm:
    runs = list(row["runs"].values())
    per_step = seconds[row["timed_as"]]

    def curve(steps: Sequence[int], values: str) -> Curve:
        done = np.array(steps, dtype=float)
        tail = float(row["dense_tail_steps"])
        return Curve(
            done,
            (done - tail) * row["flops_per_step"] + tail * row["dense_flops_per_step"],
            (done - tail) * per_step + tail * seconds[row["tail_timed_as"]],
            np.array([run[values] for run in runs]),
        )

    return Arm(
        name=row["name"],
        backbone=row["backbone"],
        label=row["label"],
        routed=row["route"] is not None,
        tail=row["dense_tail_steps"] > 0,
        parameters=row["parameters"],
        training=(
            np.array(runs[0]["training_steps"]),
            np.mean([run["training_loss"] for run in runs], axis=0),
        ),
        loss=curve(runs[0]["steps"], "loss"),
        distance=curve(runs[0]["distance_steps"], "distance"),
    )


def matched(a: Curve, b: Curve, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Values (S,) of both where the one that ends first has spent all that it spent.

    Only seeds that both have.
    """
    seeds = min(len(a.values), len(b.values))
    x = min(a.spent(axis)[-1], b.spent(axis)[-1])
    return a.first(seeds).at(axis, x), b.first(seeds).at(axis, x)


def change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(S,) by how much b differs from a, seed by seed: -0.1 is 10 % lower."""
    return b / a - 1


def matched_table(
    comparison: Comparison, pairs: Sequence[tuple[str, str]], measure: Measure
) -> str:
    """Markdown: for pairs of arms (from, to), both values and the change at equal cost.

    Means over seeds; behind +-, the standard deviation of the change over seeds.
    """
    lines = [
        "| " + NAMES[measure] + " | " + " | ".join(f"equal {NAMES[x]}" for x in AXES) + " |",
        "|---" * (len(AXES) + 1) + "|",
    ]
    for first, second in pairs:
        a, b = comparison.arms[first], comparison.arms[second]
        cells = []
        for axis in AXES:
            before, after = matched(a.curve(measure), b.curve(measure), axis)
            by = 100 * change(before, after)
            if np.isnan(by).any():
                cells.append("not measured")
                continue
            spread = f" ± {statistics.stdev(by):.1f}" if len(by) > 1 else " (one seed)"
            cells.append(f"{before.mean():.3g} → {after.mean():.3g} ({by.mean():+.1f}{spread} %)")
        lines.append(f"| {a.label} → {b.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table(comparison: Comparison, names: Sequence[str]) -> str:
    """Markdown: size of each arm, FLOPs and time of a step (a mean, where they change)."""
    lines = [
        "| arm | parameters | GFLOPs per step | of dense | ms per step | of dense | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        arm = comparison.arms[name]
        dense = comparison.arms[f"{arm.backbone}-dense"].loss
        steps, flops, seconds = (arm.loss.spent(x)[-1] for x in AXES)
        lines.append(
            f"| {arm.label} | {arm.parameters:,} | {flops / steps / 1e9:.2f} "
            f"| {flops / dense.flops[-1]:.2f} | {seconds / steps * 1e3:.0f} "
            f"| {seconds / dense.seconds[-1]:.2f} | {len(arm.loss.values)} |"
        )
    return "\n".join(lines)


def rates_table(comparison: Comparison) -> str:
    """Markdown: held-out loss of each dense backbone after a short run at each learning rate."""
    sweep = comparison.facts["sweep"]
    rates = [f"{tried['lr']:g}" for tried in next(iter(sweep.values()))]
    title = f"held-out loss after {comparison.facts['sweep_steps']} steps, by learning rate"
    lines = [f"| {title} | " + " | ".join(rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for backbone, tried in sweep.items():
        best = min(t["loss"] for t in tried)
        cells = [f"**{t['loss']:.4f}**" if t["loss"] == best else f"{t['loss']:.4f}" for t in tried]
        label = comparison.arms[f"{backbone}-dense"].label
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_curves(comparison: Comparison, names: Sequence[str]) -> Figure:
    """Held-out loss (above) and FD-emoji (below) over steps, FLOPs and seconds.

    Lines are means over seeds, bands reach from the best to the worst seed.
    """
    figure, axes = new_figure(11.5, 6.6, 2, 3, sharey="row")
    arms = [comparison.arms[name] for name in names]
    panels = [(m, x) for m in ("loss", "distance") for x in AXES]
    for ax, (measure, axis) in zip(axes, panels, strict=True):
        for arm in arms:
            _plot_curve(ax, arm, arm.curve(measure), axis)  # type: ignore[arg-type]
        plain(ax)
        _log_scale(ax)
        if axis == "steps":
            ax.set_ylabel(f"{NAMES[measure]} (lower is better)")
        if measure == "distance":
            ax.set_xlabel(NAMES[axis])
    figure.legend(
        handles=[_key(a) for a in arms], loc="outside upper center", ncols=6, frameon=False
    )
    return figure


def plot_changes(comparison: Comparison, pairs: Sequence[tuple[str, str]]) -> Figure:
    """The change from one arm to another at equal steps, FLOPs and seconds, seed by seed.

    Dots are seeds, bars their means; below zero the second arm is better.
    """
    figure, axes = new_figure(10.5, 0.9 + 1.9, 1, 2)
    for ax, measure in zip(axes, ("loss", "distance"), strict=True):
        width = 0.8 / len(pairs)
        for i, (first, second) in enumerate(pairs):
            a, b = comparison.arms[first], comparison.arms[second]
            for k, axis in enumerate(AXES):
                by = 100 * change(*matched(a.curve(measure), b.curve(measure), axis))  # type: ignore[arg-type]
                place = k + (i - (len(pairs) - 1) / 2) * width
                colour, alpha = BACKBONE[b.backbone], 0.4 if b.tail else 0.85
                ax.bar(place, by.mean(), 0.88 * width, color=colour, alpha=alpha, lw=0)
                ax.plot([place] * len(by), by, "o", color=INK, ms=3.5)
        ax.axhline(0, color=INK, lw=1)
        plain(ax)
        ax.grid(False, axis="x")
        ax.set_xticks(range(len(AXES)), [f"equal {x}" for x in ("steps", "FLOPs", "seconds")])
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel("change, %")
        ax.set_title(f"{NAMES[measure]}: below zero is better", fontsize=10, color=INK)
    handles = []
    for first, second in pairs:
        b = comparison.arms[second]
        handles.append(
            Line2D(
                *([], []),
                marker="s",
                ls="",
                ms=9,
                color=BACKBONE[b.backbone],
                alpha=0.4 if b.tail else 0.85,
                label=f"{comparison.arms[first].label} → {b.label.partition(', ')[2]}",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def plot_training_loss(comparison: Comparison, names: Sequence[str]) -> Figure:
    """The loss that training shows (left), beside that of the dense network on held-out images."""
    figure, (left, right) = new_figure(9.5, 3.4, 1, 2, sharey=True)
    for name in names:
        arm = comparison.arms[name]
        steps, values = arm.training
        later = steps >= arm.loss.steps[0]
        left.plot(steps[later], values[later], **_style(arm, markers=False))
        _plot_curve(right, arm, arm.loss, "steps")
    for ax, title in ((left, "training loss, as logged"), (right, "held-out loss, dense network")):
        plain(ax)
        _log_scale(ax)
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel(NAMES["steps"])
    handles = [_key(comparison.arms[n]) for n in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_ends(comparison: Comparison, names: Sequence[str]) -> Figure:
    """Where each arm ended, seed by seed: held-out loss and FD-emoji after the last step."""
    figure, axes = new_figure(10.5, 0.9 + 0.33 * len(names), 1, 2, sharey=True)
    arms = [comparison.arms[name] for name in names]
    for ax, measure in zip(axes, ("loss", "distance"), strict=True):
        for row, arm in enumerate(arms):
            values = arm.curve(measure).values[:, -1]  # type: ignore[arg-type]
            colour = BACKBONE[arm.backbone]
            ax.plot(values.mean(), row, marker="|", ms=15, mew=2, color=colour)
            ax.plot(values, [row] * len(values), "o", ms=6, color=colour, mfc=_fill(arm))
        plain(ax)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"{NAMES[measure]} at the end (lower is better)")
    dense = {b: comparison.arms[f"{b}-dense"].loss.flops[-1] for b in {a.backbone for a in arms}}
    shares = [f"{a.label}   {a.loss.flops[-1] / dense[a.backbone]:.2f}" for a in arms]
    axes[0].set_yticks(range(len(arms)), shares)
    axes[0].set_title("arm, and its FLOPs over dense", loc="left", x=-0.55, fontsize=9, color=INK)
    axes[0].invert_yaxis()
    return figure


def plot_samples(comparison: Comparison, names: Sequence[str], classes: Sequence[str]) -> Figure:
    """The samples that were recorded, a panel an arm: a row a checkpoint, a column a class."""
    figure, axes = new_figure(11.5, 5.4, 2, 2)
    for ax, name in zip(axes, names, strict=False):
        arm = comparison.arms[name]
        picture = imread(comparison.folder / f"{name}.png")
        rows, columns = len(arm.distance.steps), len(classes)
        ax.imshow(picture, extent=(0, columns, rows, 0), interpolation="nearest", aspect="equal")
        for i in range(1, rows):
            ax.axhline(i, color="white", lw=3)
        for i in range(1, columns):
            ax.axvline(i, color="white", lw=3)
        ax.set_yticks(np.arange(rows) + 0.5, [f"{s:,.0f}" for s in arm.distance.steps], fontsize=9)
        lowest = ax in axes[2:]
        ax.set_xticks(np.arange(columns) + 0.5, classes if lowest else [""] * columns)
        ax.tick_params(axis="x", rotation=35, labelsize=8)
        for text in ax.get_xticklabels():
            text.set_horizontalalignment("right")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(arm.label, fontsize=11, color=BACKBONE[arm.backbone], weight="bold")
        ax.set_ylabel("steps", color=INK)
    return figure


def _plot_curve(ax: Axes, arm: Arm, curve: Curve, axis: Axis) -> None:
    x, mean = curve.spent(axis), curve.values.mean(axis=0)
    if len(curve.values) > 1 and len(x) > 1:
        low, high = curve.values.min(axis=0), curve.values.max(axis=0)
        ax.fill_between(x, low, high, color=BACKBONE[arm.backbone], alpha=0.15, lw=0)
    ax.plot(x, mean, **_style(arm))


def _style(arm: Arm, markers: bool = True) -> dict[str, Any]:
    """Colour: the backbone; dashed and hollow: dense; solid: routed; star: with a dense tail."""
    mark = ("*" if arm.tail else "o") if markers else None
    return {
        "color": BACKBONE[arm.backbone],
        "ls": "-" if arm.routed else (0, (4, 2)),
        "lw": 1.8,
        "marker": mark,
        "ms": 13 if arm.tail else 4.5,
        "mfc": _fill(arm),
        "mec": "white" if arm.tail else BACKBONE[arm.backbone],
    }


def _fill(arm: Arm) -> str:
    return BACKBONE[arm.backbone] if arm.routed else "white"


def _key(arm: Arm) -> Line2D:
    style = _style(arm) | ({"ls": ""} if arm.tail else {})
    return Line2D([], [], label=arm.label, **style)


def _log_scale(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.tick_params(axis="y", which="both", labelsize=8)
    ax.grid(color=PALE, lw=0.6, which="both", axis="y")
