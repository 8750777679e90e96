"""Curves of several runs: each measure over steps, over FLOPs and over seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from tread_ssm.plots.colours import ARMS, new_figure, plain
from tread_ssm.plots.runs import upwards_log, wrapped
from tread_ssm.tables import prefix

AXES = ("steps", "FLOPs", "seconds")


@dataclass(frozen=True)
class Curve:
    """One measure of one run.

    Attributes:
        arm: What the run belongs to; runs of an arm share a colour.
        at: By each of AXES, where the values were measured.
        values: Greater than 0.
    """

    arm: str
    at: Mapping[str, Sequence[float]]
    values: Sequence[float]


def plot_curves(measures: Mapping[str, Sequence[Curve]]) -> Figure:
    """A row for each measure, a column for each of AXES; all on a logarithmic scale upwards.

    Args:
        measures: The curves of each measure that any run has.
    """
    arms = list(dict.fromkeys(curve.arm for curves in measures.values() for curve in curves))
    colours = {arm: ARMS[i % len(ARMS)] for i, arm in enumerate(arms)}
    most = max(curve.at["FLOPs"][-1] for curves in measures.values() for curve in curves)
    unit, letter = prefix(most)
    figure, axes = new_figure(10, 0.4 + 2.7 * len(measures), len(measures), len(AXES), sharey="row")
    for row, (name, curves) in enumerate(measures.items()):
        for column, axis in enumerate(AXES):
            place = axes[row * len(AXES) + column]
            plain(place)
            for curve in curves:
                dot = "o" if len(curve.values) < 12 else None
                at = [x / unit for x in curve.at[axis]] if axis == "FLOPs" else curve.at[axis]
                place.plot(at, curve.values, color=colours[curve.arm], marker=dot, markersize=4)
            upwards_log(place)
            place.set_xlim(left=0)
            place.set_xlabel(f"training {letter}FLOPs" if axis == "FLOPs" else axis)
            if column == 0:
                place.set_ylabel(f"{wrapped(name)}\n(log scale)")
    for arm in arms:
        axes[0].plot([], [], color=colours[arm], label=arm)
    axes[0].legend(frameon=False, fontsize=9)
    return figure
