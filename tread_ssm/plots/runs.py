"""The pictures of a run's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tread_ssm.plots.colours import DENSE, DROPPED, INK, KEPT, new_figure, plain
from tread_ssm.routing.cost import PlanCost


def plot_losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss of kept and routed tokens over the steps: the logged means, and smoothed over them.

    Args:
        rows: Of metrics.jsonl. Rows without a routed loss (no routes, a dense tail) give a curve
            of all tokens.
    """
    figure, (axes,) = new_figure(7.5, 3.8)
    plain(axes)
    width = max(1.0, len(rows) / 40)
    routed = [row for row in rows if row["routed_loss"] is not None]
    dense = [row for row in rows if row["routed_loss"] is None]
    curves = [
        (routed, "kept_loss", "kept tokens", KEPT),
        (routed, "routed_loss", "routed tokens", DROPPED),
        (dense, "loss", "all tokens, no routes" if routed else "all tokens", INK),
    ]
    for part, key, name, colour in curves:
        if part:
            steps, values = [row["step"] for row in part], [row[key] for row in part]
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            dot = "o" if len(part) == 1 else None
            mean = smooth(values, width)
            axes.plot(steps, mean, color=colour, linewidth=2, marker=dot, label=name)
    axes.set_yscale("log")
    # Plain numbers: losses rarely span a decade, and 6 x 10^-1 is hard to read.
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set(xlabel="step", ylabel="loss (log scale)", xlim=(0, rows[-1]["step"]))
    axes.legend(frameon=False)
    return figure


def smooth(values: Sequence[float], width: float) -> list[float]:
    """Means around each value, with the weights of a Gaussian of standard deviation `width`."""
    reach = round(3 * width)
    smoothed = []
    for i in range(len(values)):
        near = range(max(0, i - reach), min(len(values), i + reach + 1))
        weights = [math.exp(-0.5 * ((k - i) / width) ** 2) for k in near]
        total = sum(w * values[k] for w, k in zip(weights, near, strict=True))
        smoothed.append(total / sum(weights))
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
    """FD-emoji of each set of images as a bar; the last one is the reference for the eye."""
    figure, (axes,) = new_figure(7.5, 0.6 + 0.5 * len(distances))
    colours = [DENSE] + [KEPT] * (len(distances) - 2) + [DROPPED]
    _bars(axes, distances, colours, "{:.1f}")
    axes.set_xlabel("FD-emoji (lower is better)")
    return figure


def _bars(axes: Axes, values: Mapping[str, float], colours: Sequence[str], form: str) -> None:
    plain(axes)
    axes.grid(False, axis="y")
    bars = axes.barh(list(values), list(values.values()), color=colours, height=0.62)
    axes.bar_label(bars, [form.format(v) for v in values.values()], padding=4, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(*values.values(), 1e-9))
    axes.tick_params(axis="y", length=0)
