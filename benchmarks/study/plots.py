"""Plots of the recorded runs: curves over steps, FLOPs and seconds; changes; samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from benchmarks.study.curves import (
    AXES,
    NAMES,
    Axis,
    Curve,
    Recorded,
    change,
    matched,
    share_of_flops,
)
from tread_ssm.plots.colours import BACKBONE, INK, PALE, new_figure, plain


def plot_curves(arms: Mapping[str, Recorded], names: Sequence[str]) -> Figure:
    """Held-out loss (above) and FD-emoji (below) over steps, FLOPs and seconds.

    Lines are means over seeds, bands reach from the best to the worst seed.
    """
    figure, axes = new_figure(11.5, 6.6, 2, 3, sharey="row")
    chosen = [arms[name] for name in names]
    panels = [(m, x) for m in ("loss", "distance") for x in AXES]
    for ax, (measure, axis) in zip(axes, panels, strict=True):
        for arm in chosen:
            _plot_curve(ax, arm, arm.curve(measure), axis)  # type: ignore[arg-type]
        plain(ax)
        _log_scale(ax)
        if axis == "steps":
            ax.set_ylabel(f"{NAMES[measure]} (lower is better)")
        if measure == "distance":
            ax.set_xlabel(NAMES[axis])
    figure.legend(
        handles=[_key(a) for a in chosen], loc="outside upper center", ncols=6, frameon=False
    )
    return figure


def plot_changes(arms: Mapping[str, Recorded], pairs: Sequence[tuple[str, str]]) -> Figure:
    """The change from one arm to another at equal steps, FLOPs and seconds, seed by seed.

    Dots are seeds, bars their means; below zero the second arm is better.
    """
    figure, axes = new_figure(10.5, 0.9 + 1.9, 1, 2)
    for ax, measure in zip(axes, ("loss", "distance"), strict=True):
        width = 0.8 / len(pairs)
        for i, (first, second) in enumerate(pairs):
            a, b = arms[first], arms[second]
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
        b = arms[second]
        handles.append(
            Line2D(
                *([], []),
                marker="s",
                ls="",
                ms=9,
                color=BACKBONE[b.backbone],
                alpha=0.4 if b.tail else 0.85,
                label=f"{arms[first].label} → {b.label.partition(', ')[2]}",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def plot_training_loss(arms: Mapping[str, Recorded], names: Sequence[str]) -> Figure:
    """The loss that training shows (left), beside that of the dense network on held-out images."""
    figure, (left, right) = new_figure(9.5, 3.4, 1, 2, sharey=True)
    for name in names:
        arm = arms[name]
        steps, values = arm.training
        later = steps >= arm.loss.steps[0]
        left.plot(steps[later], values[later], **_style(arm, markers=False))
        _plot_curve(right, arm, arm.loss, "steps")
    for ax, title in ((left, "training loss, as logged"), (right, "held-out loss, dense network")):
        plain(ax)
        _log_scale(ax)
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel(NAMES["steps"])
    handles = [_key(arms[n]) for n in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_ends(arms: Mapping[str, Recorded], names: Sequence[str]) -> Figure:
    """Where each arm ended, seed by seed: held-out loss and FD-emoji after the last step."""
    figure, axes = new_figure(10.5, 0.9 + 0.33 * len(names), 1, 2, sharey=True)
    chosen = [arms[name] for name in names]
    for ax, measure in zip(axes, ("loss", "distance"), strict=True):
        for row, arm in enumerate(chosen):
            values = arm.curve(measure).values[:, -1]  # type: ignore[arg-type]
            colour = BACKBONE[arm.backbone]
            ax.plot(values.mean(), row, marker="|", ms=15, mew=2, color=colour)
            ax.plot(values, [row] * len(values), "o", ms=6, color=colour, mfc=_fill(arm))
        plain(ax)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"{NAMES[measure]} at the end (lower is better)")
    shares = [
        f"{arm.label}   {share_of_flops(arms, name):.2f}"
        for name, arm in zip(names, chosen, strict=True)
    ]
    axes[0].set_yticks(range(len(chosen)), shares)
    axes[0].set_title("arm, and its FLOPs over dense", loc="left", x=-0.55, fontsize=9, color=INK)
    axes[0].invert_yaxis()
    return figure


def plot_samples(
    arms: Mapping[str, Recorded], names: Sequence[str], folder: Path, classes: Sequence[str]
) -> Figure:
    """The samples that were recorded, a panel an arm: a row a checkpoint, a column a class.

    Args:
        arms: The recorded arms.
        names: Which of them to show, at most four.
        folder: Of the pictures, NAME.png.
        classes: Names of the columns.
    """
    figure, axes = new_figure(11.5, 5.4, 2, 2)
    for ax, name in zip(axes, names, strict=False):
        arm = arms[name]
        picture = imread(folder / f"{name}.png")
        points = arm.curve("distance").steps
        rows, columns = len(points), len(classes)
        ax.imshow(picture, extent=(0, columns, rows, 0), interpolation="nearest", aspect="equal")
        for i in range(1, rows):
            ax.axhline(i, color="white", lw=3)
        for i in range(1, columns):
            ax.axvline(i, color="white", lw=3)
        ax.set_yticks(np.arange(rows) + 0.5, [f"{s:,.0f}" for s in points], fontsize=9)
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


def _plot_curve(ax: Axes, arm: Recorded, curve: Curve, axis: Axis) -> None:
    x, mean = curve.spent(axis), curve.values.mean(axis=0)
    if len(curve.values) > 1 and len(x) > 1:
        low, high = curve.values.min(axis=0), curve.values.max(axis=0)
        ax.fill_between(x, low, high, color=BACKBONE[arm.backbone], alpha=0.15, lw=0)
    ax.plot(x, mean, **_style(arm))


def _style(arm: Recorded, markers: bool = True) -> dict[str, Any]:
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


def _fill(arm: Recorded) -> str:
    return BACKBONE[arm.backbone] if arm.routed else "white"


def _key(arm: Recorded) -> Line2D:
    style = _style(arm) | ({"ls": ""} if arm.tail else {})
    return Line2D([], [], label=arm.label, **style)


def _log_scale(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.tick_params(axis="y", which="both", labelsize=8)
    ax.grid(color=PALE, lw=0.6, which="both", axis="y")
