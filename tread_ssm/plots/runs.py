"""The pictures of a run's report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from tread_ssm.plots.colours import DENSE, DROPPED, INK, KEPT, new_figure, plain
from tread_ssm.routing.cost import PlanCost


def plot_losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss of kept and routed tokens over the steps: the logged means, and smoothed over them.

    Below it, where there are routes, by how much the loss of routed tokens is above the other.

    Args:
        rows: Of metrics.jsonl. Rows without a routed loss (no routes, a dense tail) give a curve
            of all tokens.
    """
    routed = [row for row in rows if row["routed_loss"] is not None]
    dense = [row for row in rows if row["routed_loss"] is None]
    heights = [3, 1] if routed else [1]
    size = 5.2 if routed else 3.8
    figure, axes = new_figure(7.5, size, len(heights), height_ratios=heights, sharex=True)
    width = max(1.0, len(rows) / 40)
    curves = [
        (routed, "kept_loss", "kept tokens", KEPT),
        (routed, "routed_loss", "routed tokens", DROPPED),
        (dense, "loss", "all tokens, no routes" if routed else "all tokens", INK),
    ]
    for part, key, name, colour in curves:
        if part:
            _draw_curve(axes[0], part, [row[key] for row in part], width, colour, name)
    validated = [row for row in rows if row.get("validation_loss") is not None]
    if validated:
        at, values = ([row[key] for row in validated] for key in ("step", "validation_loss"))
        axes[0].plot(at, values, color=INK, marker="o", markersize=4, label="validation, dense")
    upwards_log(axes[0])
    axes[0].set(ylabel="loss (log scale)", xlim=(0, rows[-1]["step"]))
    axes[0].legend(frameon=False)
    if routed:
        above = [100 * (row["routed_loss"] / row["kept_loss"] - 1) for row in routed]
        _draw_curve(axes[1], routed, above, width, INK, "")
        axes[1].axhline(0, color=DENSE, linewidth=1)
        axes[1].set(ylabel="routed over kept, %")
    axes[-1].set(xlabel="step")
    return figure


def plot_evals(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    """Each measure over the steps, on a logarithmic scale where all its values allow it.

    Args:
        rows: Of evals.jsonl.
        titles: Of the measures, by their names in the rows.
    """
    columns = min(len(titles), 3)
    lines = math.ceil(len(titles) / columns)
    figure, axes = new_figure(3.8 * columns, 3.0 * lines, lines, columns)
    for place, (name, title) in zip(axes, titles.items(), strict=False):
        there = [row for row in rows if row.get(name) is not None]
        values = [row[name] for row in there]
        plain(place)
        place.plot([row["step"] for row in there], values, color=KEPT, marker="o", markersize=4)
        if values and min(values) > 0:
            upwards_log(place)
            place.set_ylabel("log scale")
        place.set(xlabel="step", title=wrapped(title), xlim=(0, None))
    for place in axes[len(titles) :]:
        place.set_visible(False)
    return figure


def _draw_curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    width: float,
    colour: str,
    name: str,
) -> None:
    """Values thin, and smoothed thick."""
    plain(axes)
    steps = [row["step"] for row in rows]
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    dot = "o" if len(rows) == 1 else None
    axes.plot(steps, smooth(values, width), color=colour, linewidth=2, marker=dot, label=name)


def wrapped(title: str) -> str:
    """A title in lines that fit beside small axes; names of features can be long."""
    return "\n".join(textwrap.wrap(title, 26))


def upwards_log(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers: 6 x 10^-1 is hard to read."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:.3g}")
    # Between decades there is room for numbers only where there are few decades.
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6) if high < 10 * low else (2, 5)))
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.tick_params(axis="y", which="both", labelsize=8)


def smooth(values: Sequence[float], width: float) -> list[float]:
    """Means around each value, with the weights of a Gaussian of standard deviation `width`.

    Positive values are averaged as logarithms: a loss falls by factors, and a plain mean of its
    first values would lie far above them. Towards an end the window shrinks with the distance to
    it, so that a falling curve is not cut short.
    """
    logs = all(v > 0 for v in values)
    given = [math.log(v) for v in values] if logs else values
    smoothed = []
    for i in range(len(given)):
        reach = min(round(3 * width), i, len(given) - 1 - i)
        near = range(i - reach, i + reach + 1)
        weights = [math.exp(-0.5 * ((k - i) / width) ** 2) for k in near]
        mean = sum(w * given[k] for w, k in zip(weights, near, strict=True)) / sum(weights)
        smoothed.append(math.exp(mean) if logs else mean)
    return smoothed


def plot_routing(cost: PlanCost, measured: float) -> Figure:
    """Left: tokens that each block sees. Right: what is left of the dense network's cost.

    Args:
        cost: Dense and routed.
        measured: Step time, routed over dense.
    """
    figure, (left, right) = new_figure(9.5, 3.2, 1, 2)
    plain(left)
    blocks = range(len(cost.dense.tokens))
    left.bar(blocks, cost.dense.tokens, color=DENSE, width=0.85, label="dense")
    left.bar(blocks, cost.routed.tokens, color=KEPT, width=0.85, label="routed")
    left.set(xlabel="block", ylabel="tokens in the stream")
    left.set_ylim(0, max(cost.dense.tokens) * 1.3)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, ncols=2, loc="upper right")
    shares = {
        "tokens, all blocks": cost.token_share,
        "FLOPs, forward": cost.routed.forward / cost.dense.forward,
        "FLOPs, training step": cost.step_share,
        "time, training step": measured,
    }
    _bars(right, {k: 100 * v for k, v in shares.items()}, [KEPT] * 3 + [DROPPED], "{:.0f} %")
    right.axvline(100, color=INK, linewidth=1, linestyle="--")
    right.set(xlabel="routed, % of dense", xlim=(0, max(112, 112 * max(shares.values()))))
    return figure


def plot_distances(distances: Mapping[str, float]) -> Figure:
    """FD-emoji of each set of images on a logarithmic axis; the last one is what can be reached."""
    figure, (axes,) = new_figure(7.5, 0.8 + 0.5 * len(distances))
    plain(axes)
    values, places = list(distances.values()), range(len(distances))
    colours = [DENSE] + [KEPT] * (len(values) - 2) + [DROPPED]
    axes.scatter(values, places, color=colours, s=90, zorder=3)
    for value, place in zip(values, places, strict=True):
        axes.annotate(f"{value:.1f}", (value, place), (9, -4), textcoords="offset points")
    axes.set_yticks(places, list(distances))
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * min(values), 1.6 * max(values))
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.xaxis.set_minor_formatter("{x:.3g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel("FD-emoji (log scale, lower is better)")
    return figure


def _bars(axes: Axes, values: Mapping[str, float], colours: Sequence[str], form: str) -> None:
    plain(axes)
    axes.grid(False, axis="y")
    bars = axes.barh(list(values), list(values.values()), color=colours, height=0.62)
    axes.bar_label(bars, [form.format(v) for v in values.values()], padding=4, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(*values.values(), 1e-9))
    axes.tick_params(axis="y", length=0)
