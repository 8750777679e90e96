"""The pictures of a run's report; imported where one is written, as matplotlib is slow to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tread_ssm.routing.cost import PlanCost

KEPT, ROUTED, ALL, DENSE = "#2a6fb0", "#e07b39", "#3d8b57", "#b8bec6"


def plot_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss of kept and routed tokens over the steps: the logged means, and smoothed over them.

    rows: of metrics.jsonl. Rows without a routed loss (no routes, a dense tail) give a curve of
    all tokens.
    """
    figure, axes = _new(7.5, 3.8)
    width = max(1.0, len(rows) / 40)
    routed = [row for row in rows if row["routed_loss"] is not None]
    dense = [row for row in rows if row["routed_loss"] is None]
    curves = [
        (routed, "kept_loss", "kept tokens", KEPT),
        (routed, "routed_loss", "routed tokens", ROUTED),
        (dense, "loss", "all tokens, no routes" if routed else "all tokens", ALL),
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
    _save(figure, path)


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


def plot_routing(cost: PlanCost, measured: float, path: Path) -> None:
    """Left: tokens that each block sees. Right: what is left of the dense network's cost.

    measured: step time, routed over dense.
    """
    figure, (left, right) = _new(9.5, 3.2, columns=2)
    blocks = range(len(cost.dense.tokens))
    left.bar(blocks, cost.dense.tokens, color=DENSE, width=0.85, label="dense")
    left.bar(blocks, cost.routed.tokens, color=ROUTED, width=0.85, label="routed")
    left.set(xlabel="block", ylabel="tokens in the stream")
    left.set_ylim(0, max(cost.dense.tokens) * 1.3)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, ncols=2, loc="upper right")
    shares = {
        "tokens, all blocks": cost.token_share,
        "FLOPs, forward": cost.routed.forward / cost.dense.forward,
        "FLOPs, training step": cost.step_share,
        "time, training step": measured,
    }
    _bars(right, {k: 100 * v for k, v in shares.items()}, [ROUTED] * 3 + [KEPT], "{:.0f} %")
    right.axvline(100, color="#555555", linewidth=1, linestyle="--")
    right.set(xlabel="routed, % of dense", xlim=(0, max(112, 112 * max(shares.values()))))
    _save(figure, path)


def plot_distances(distances: Mapping[str, float], path: Path) -> None:
    """FD-emoji of each set of images as a bar; the last one is the reference for the eye."""
    figure, axes = _new(7.5, 0.6 + 0.5 * len(distances))
    colours = [DENSE] + [ROUTED] * (len(distances) - 2) + [KEPT]
    _bars(axes, distances, colours, "{:.1f}")
    axes.set_xlabel("FD-emoji (lower is better)")
    _save(figure, path)


def _bars(axes: Axes, values: Mapping[str, float], colours: Sequence[str], form: str) -> None:
    bars = axes.barh(list(values), list(values.values()), color=colours, height=0.62)
    axes.bar_label(bars, [form.format(v) for v in values.values()], padding=4, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(*values.values(), 1e-9))
    axes.tick_params(axis="y", length=0)


def _new(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of its own canvas: pyplot and its state are not touched."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in axes if columns > 1 else [axes]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png")
