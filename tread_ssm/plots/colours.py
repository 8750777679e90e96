"""One palette, in which a colour means the same in every picture, and figures without pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tread_ssm.files import replacing

INK = "#22303c"  # text, frames
PALE = "#e3e8ed"  # what is not there
FADED = "#c3cbd4"  # tokens that are not seen; darker than the white ground of many images
KEPT = "#2a78c2"  # tokens inside a route
DROPPED = "#e08a2e"  # tokens that a route carries past its blocks
PREFIX = "#7b5ea7"  # tokens without a place in the image
DENSE = "#b8bec6"  # the network without routes, to compare with
BACKBONE = {"dim": "#0f7c72", "dit": "#b5407a"}
ARMS = ("#2a78c2", "#e08a2e", "#0f7c72", "#b5407a", "#7b5ea7", "#8a6d3b", "#5f6b76")
"""Of runs that are compared, in turn."""


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


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
