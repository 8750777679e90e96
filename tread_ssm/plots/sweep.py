"""Metrics against the option that was swept, one panel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from tread_ssm.plots.colours import KEPT, new_figure, plain


def plot_sweep(
    option: str, values: Sequence[float], metrics: Mapping[str, Sequence[float]]
) -> Figure:
    """A panel for each metric.

    Args:
        option: Name of the option.
        values: Of the option, in rising order.
        metrics: By title, the metric at each value.
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
    return figure
