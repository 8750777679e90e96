"""The colours that mean the same in every picture, and figures without pyplot's global state."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#22303c"  # text, frames
PALE = "#e3e8ed"  # what is not there
KEPT = "#2a78c2"  # tokens inside a route
DROPPED = "#e08a2e"  # tokens that a route carries past its blocks
PREFIX = "#7b5ea7"  # tokens without a place in the image
BACKBONE = {"dim": "#0f7c72", "dit": "#b5407a"}


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure in inches and its axes, row by row; `options` are those of Figure.subplots."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def bare(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def plain(axes: Axes) -> None:
    """Frame on the left and below only, a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
