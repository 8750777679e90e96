"""Timings of sides that took turns (tread_ssm.timing), as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from tread_ssm.plots.colours import DROPPED, INK, KEPT, new_figure, plain


def plot_turns(seconds: Mapping[str, Sequence[float]], unit: str = "one training step") -> Figure:
    """Timings of sides that took turns: each turn a dot, medians as bars; the first side is 1.

    Args:
        seconds: By title, of tread_ssm.timing.take_turns.
        unit: What took so long.
    """
    figure, (ax,) = new_figure(7.5, 0.9 + 0.55 * len(seconds), 1, 1)
    base = statistics.median(next(iter(seconds.values())))
    for row, values in enumerate(seconds.values()):
        median = statistics.median(values)
        ax.barh(row, median * 1e3, 0.6, color=INK if row == 0 else KEPT, alpha=0.85, lw=0)
        ax.plot(np.array(values) * 1e3, [row] * len(values), "|", color=DROPPED, ms=11, mew=1.2)
        text = f"{median * 1e3:.0f} ms" + (f" = {median / base:.2f} of it" if row else "")
        ax.annotate(
            text, (0, row), xytext=(7, 0), textcoords="offset points", va="center", color="white"
        )
    ax.set_yticks(range(len(seconds)), list(seconds))
    ax.invert_yaxis()
    plain(ax)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"milliseconds of {unit} (bar: median; marks: each turn)")
    return figure
