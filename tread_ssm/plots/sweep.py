"""Metrics against the options that were swept, one panel each: curves, or heat maps."""

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


def plot_heat_maps(
    options: tuple[str, str],
    values: tuple[Sequence[float], Sequence[float]],
    metrics: Mapping[str, Sequence[Sequence[float]]],
) -> Figure:
    """A panel for each metric; colour and number say how large it is.

    Args:
        options: Names of the two options.
        values: Of each, in rising order.
        metrics: By title, a row for each value of the first option, in it one for each of the
            second.
    """
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    across = max(3.6, 0.75 * len(values[1]) + 1.6)
    figure, axes = new_figure(
        across * columns, max(2.8, 0.45 * len(values[0]) + 1.4) * rows, rows, columns
    )
    for ax, (title, table) in zip(axes, metrics.items(), strict=False):
        ax.imshow(table, cmap="Blues", aspect="auto", origin="lower")
        numbers = [v for row in table for v in row]
        middle = (min(numbers) + max(numbers)) / 2
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                colour = "white" if value > middle else "black"
                ax.text(j, i, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
        for axis, option, ticks in zip((ax.yaxis, ax.xaxis), options, values, strict=True):
            axis.set_ticks(range(len(ticks)), [f"{v:g}" for v in ticks])
            axis.set_label_text(option)
        ax.set_title(title, fontsize=10)
    for ax in axes[len(metrics) :]:
        ax.set_visible(False)
    return figure
