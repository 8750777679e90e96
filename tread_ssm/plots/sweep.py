"""Metrics against the option that was swept, one panel each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tread_ssm.plots.colours import KEPT, new_figure, plain


def plot_sweep(
    path: Path, option: str, values: Sequence[float], metrics: Mapping[str, Sequence[float]]
) -> None:
    """Write a PNG, whole or not at all.

    values:  of the option, in rising order.
    metrics: title -> the metric at each value.
    """
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = new_figure(3.6 * columns, 2.8 * rows, rows, columns)
    for ax, (title, metric) in zip(axes, metrics.items(), strict=False):
        ax.plot(values, metric, color=KEPT, marker="o")
        ax.set(xlabel=option, ylabel=title)
        plain(ax)
    for ax in axes[len(metrics) :]:
        ax.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
