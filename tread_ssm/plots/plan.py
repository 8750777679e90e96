"""A plan of routes as a picture: blocks across, streams of tokens above them, routes as arcs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from tread_ssm.plots.colours import DROPPED, INK, KEPT, PALE, bare, new_figure
from tread_ssm.routing import RoutePlan

_THICK = 16.0  # points, of a stream that holds every token


def plot_plan(
    plan: RoutePlan,
    tokens: Sequence[int],
    dense_tokens: int,
    skips: Sequence[tuple[int, int]] = (),
    title: str = "",
) -> Figure:
    """Blocks, the streams that they see and the routes past them.

    Args:
        plan: The routes.
        tokens: Per block, the tokens that it sees, prefix and padding included.
        dense_tokens: The same without routes.
        skips: (source, target) blocks of long skips, faint below.
        title: Of the picture.
    """
    depth = plan.depth
    figure, (axes,) = new_figure(max(7.0, min(14.0, 0.26 * depth + 2)), 4.2 if skips else 3.4)
    bare(axes)
    for i in range(depth):
        box = (i - 0.36, -0.32), 0.72, 0.64
        inside = any(r.start <= i < r.stop for r in plan.routes)
        style = FancyBboxPatch(
            *box,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=KEPT if inside else PALE,
            edgecolor=INK,
            linewidth=0.6,
        )
        axes.add_patch(style)
    _streams(axes, tokens, dense_tokens)
    for route in plan.routes:
        dropped = dense_tokens - tokens[route.start]
        _arc(axes, route.start - 0.5, route.stop - 0.5, 0.95, 1.5, dropped / dense_tokens, DROPPED)
        middle = (route.start + route.stop - 1) / 2
        axes.text(
            middle,
            2.62,
            f"{dropped} tokens pass by ({route.drop:.0%} of the image), rejoin: {route.rejoin}",
            ha="center",
            va="bottom",
            color=DROPPED,
            fontsize=9,
        )
    for source, target in skips:
        _arc(axes, source, target, -0.4, -0.2 - 1.6 * (target - source) / depth, 0.05, INK, 0.35)
    if skips:
        axes.text(depth / 2 - 0.5, -2.25, "long skips", ha="center", color=INK, fontsize=8)
    every = 1 if depth <= 30 else 4
    for i in range(0, depth, every):
        inside = any(r.start <= i < r.stop for r in plan.routes)
        colour = "white" if inside else INK
        axes.text(i, 0, str(i), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlim=(-1.6, depth + 0.6), ylim=(-2.4 if skips else -0.7, 3.2))
    axes.set_title(title, color=INK, fontsize=11)
    return figure


def _streams(axes: Axes, tokens: Sequence[int], dense: int) -> None:
    """The stream above the blocks, as thick as it holds tokens, with its numbers."""
    for n, blocks in groupby(range(len(tokens)), tokens.__getitem__):
        first, *rest = blocks
        last = rest[-1] if rest else first
        left = first - (1.2 if first == 0 else 0.5)
        right = last + (1.2 if last == len(tokens) - 1 else 0.5)
        axes.plot(
            [left, right],
            [0.8, 0.8],
            color=KEPT,
            linewidth=_THICK * n / dense,
            solid_capstyle="butt",
        )
        axes.text(
            (left + right) / 2,
            1.08,
            str(n),
            ha="center",
            va="bottom",
            fontsize=9,
            color=KEPT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )


def _arc(
    axes: Axes,
    left: float,
    right: float,
    base: float,
    rise: float,
    share: float,
    colour: str,
    alpha: float = 1.0,
) -> None:
    """A curve from (left, base) to (right, base), as thick as the share of tokens on it."""
    lean = min(2.0, (right - left) / 3)
    points = [
        (left, base),
        (left + lean * 0.2, base + rise),
        (left + lean, base + rise),
        ((left + right) / 2, base + rise),
        (right - lean, base + rise),
        (right - lean * 0.2, base + rise),
        (right, base),
    ]
    codes = [Path.MOVETO] + [Path.CURVE4] * 6
    axes.add_patch(
        PathPatch(
            Path(points, codes),
            facecolor="none",
            edgecolor=colour,
            linewidth=max(0.6, _THICK * share),
            alpha=alpha,
            capstyle="butt",
        )
    )
