"""Draw the pictures of the README and of the docs: `python docs/draw_pictures.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from tread_ssm import (
    Cells,
    Draw,
    Layout,
    RandomTokens,
    Route,
    RoutePlan,
    Rows,
    Segments,
    run_blocks,
)
from tread_ssm.plots import tokens as show
from tread_ssm.scan.order import OrderName, rank_table

GRID, FINE = (8, 8), (16, 16)
DEPTH = 12
ROUTE = Route(2, -3)
INK, KEPT, CARRIED, PALE = "#22303c", "#2a78c2", "#e08a2e", "#d9dfe5"


def emoji(name: str) -> np.ndarray:
    """A (32, 32, 3) uint8 image of the embedded data."""
    path = Path(__file__).parents[1] / "tread_ssm/data/noto_emoji_32.npz"
    with np.load(path) as data:
        return data["images"][[str(n) for n in data["names"]].index(name)]


def draw_tokens(ax: Axes, image: np.ndarray, kept: np.ndarray, title: str) -> None:
    """The image cut into tokens, the dropped ones faded."""
    shown = image.astype(float) / 255
    for p in np.flatnonzero(~kept):
        r, c = divmod(int(p), GRID[1])
        area = (slice(4 * r, 4 * r + 4), slice(4 * c, 4 * c + 4))
        shown[area] = 0.86 + 0.1 * shown[area]
    ax.imshow(shown, extent=(0, GRID[1], GRID[0], 0), interpolation="nearest")
    for i in range(GRID[0] + 1):
        ax.axhline(i, color="white", lw=1.2)
        ax.axvline(i, color="white", lw=1.2)
    ax.set_title(title, fontsize=10, color=INK)
    ax.axis("off")


def draw_scan(ax: Axes, kept: torch.Tensor, order: OrderName, title: str) -> None:
    """The path of a scan among the kept tokens."""
    path = kept[rank_table(order, GRID)[kept].argsort()]
    y, x = (path // GRID[1] + 0.5).numpy(), (path % GRID[1] + 0.5).numpy()
    for p in range(GRID[0] * GRID[1]):
        r, c = divmod(p, GRID[1])
        colour = KEPT if bool((kept == p).any()) else PALE
        ax.add_patch(Rectangle((c + 0.12, r + 0.12), 0.76, 0.76, color=colour, alpha=0.35, lw=0))
    ax.plot(x, y, color=INK, lw=1.1)
    ax.plot(x[0], y[0], "o", color=INK, ms=5)
    ax.set(xlim=(0, GRID[1]), ylim=(GRID[0], 0), aspect="equal")
    ax.set_title(title, fontsize=10, color=INK)
    ax.axis("off")


def draw_stack(ax: Axes) -> None:
    """The blocks, the kept stream through them and the route past them."""
    route = ROUTE.resolve(DEPTH)
    for i in range(DEPTH):
        inside = route.start <= i < route.stop
        height = 1.0 if inside else 2.0
        colour = KEPT if inside else INK
        ax.add_patch(Rectangle((i + 0.14, -height / 2), 0.72, height, color=colour, alpha=0.85))
        ax.text(i + 0.5, 0, str(i), color="white", ha="center", va="center", fontsize=8)
    arrow = FancyArrowPatch(
        (route.start, 1.0),
        (route.stop, 1.0),
        connectionstyle="arc3,rad=-0.22",
        arrowstyle="-|>",
        mutation_scale=16,
        color=CARRIED,
        lw=3,
    )
    ax.add_patch(arrow)
    middle = (route.start + route.stop) / 2
    ax.text(
        middle,
        2.25,
        "route: half of the tokens, unchanged",
        color=CARRIED,
        ha="center",
        fontsize=11,
        weight="bold",
    )
    ax.text(middle, -0.95, "these blocks see the kept half", color=KEPT, ha="center", fontsize=10)
    ax.text(0.14, -1.45, "all tokens", color=INK, fontsize=10)
    ax.text(
        DEPTH - 0.14, -1.45, "all tokens, each at its place", color=INK, ha="right", fontsize=10
    )
    ax.set(xlim=(-0.1, DEPTH + 0.1), ylim=(-1.7, 2.8))
    ax.axis("off")


def routing() -> Figure:
    """The README's picture: a route past the middle blocks, and scans among what it keeps."""
    draw = RoutePlan((ROUTE,), DEPTH).draw(1, GRID, torch.Generator().manual_seed(4))
    kept = draw[0][1].index[0]
    image = emoji("parrot")
    figure = plt.figure(figsize=(11, 5.4), dpi=130)
    rows = figure.add_gridspec(2, 4, height_ratios=(1.25, 1), hspace=0.18, wspace=0.08)
    draw_stack(figure.add_subplot(rows[0, :]))
    everything = np.ones(GRID[0] * GRID[1], dtype=bool)
    draw_tokens(figure.add_subplot(rows[1, 0]), image, everything, "an image as 8 x 8 tokens")
    mask = draw[0][1].mask()[0].numpy()
    draw_tokens(figure.add_subplot(rows[1, 1]), image, mask, "the half that is kept")
    draw_scan(figure.add_subplot(rows[1, 2]), kept, "raster", "scanned along rows ...")
    draw_scan(figure.add_subplot(rows[1, 3]), kept, "column", "... and along columns")
    return figure


def selections() -> Figure:
    """Which tokens each selection keeps of a grid of 16 x 16."""
    selects = {
        "RandomTokens()": RandomTokens(),
        "Rows()": Rows(),
        'Cells(2, choose="within")': Cells(2, choose="within"),
        'Cells(2, choose="whole")': Cells(2, choose="whole"),
        'Cells(4, choose="whole")': Cells(4, choose="whole"),
        'Segments(16, along="rows")': Segments(16),
        'Segments(16, along="columns")': Segments(16, along="columns"),
    }
    kept = {title: one_draw(Route(2, 6, select=s))[0][1] for title, s in selects.items()}
    return show.plot_kept(emoji("parrot"), kept, FINE)


def orders() -> Figure:
    """Scans of a whole grid, and the same scans among a random half of it."""
    half = one_draw(Route(2, 6))[0][1]
    names: tuple[OrderName, ...] = ("raster", "column_reversed", "zigzag_3", "hilbert")
    ranks = {name: rank_table(name, FINE) for name in names}
    paths = {name: show.scan_path(rank, FINE) for name, rank in ranks.items()}
    paths |= {f"{n}, half": show.scan_path(rank, FINE, half) for n, rank in ranks.items()}
    return show.plot_paths(paths, FINE)


def stream() -> Figure:
    """What each of twelve blocks sees of 8 x 8 tokens behind a prefix of two."""
    draw = RoutePlan((ROUTE,), DEPTH).draw(1, GRID, torch.Generator().manual_seed(0))
    return show.plot_stream(draw, DEPTH, GRID, n_prefix=2)


def rejoin() -> Figure:
    """What stands at the dropped places behind a route, with toy blocks that tint pixels blue."""
    patch = 2
    blue = torch.tensor([0.10, 0.25, 0.75]).repeat(patch * patch)
    x = show.cut(torch.from_numpy(emoji("parrot")).float() / 255, patch)

    def tint(x: torch.Tensor, cond: None, layout: Layout) -> torch.Tensor:
        return x + 0.14 * (blue - x)

    draw = one_draw(Route(2, 6))
    subset = draw[0][1]
    start = tint(tint(x, None, Layout(FINE)), None, Layout(FINE))
    inside = tint(tint(subset.take(start), None, Layout(FINE)), None, Layout(FINE))
    shown = show.joined(subset.put(inside, torch.zeros_like(x)), FINE, patch)
    panels: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        "the network's input": (show.joined(x, FINE, patch), None),
        "at the route's start (2 blocks)": (show.joined(start, FINE, patch), None),
        "inside it, after 2 more blocks": (shown, subset.mask()[0].numpy()),
    }
    for name in ("start", "input", "sum"):
        end = run_blocks([tint] * 6, x, None, Layout(FINE), one_draw(Route(2, 6, rejoin=name)))
        panels[f'rejoin="{name}"'] = (show.joined(end, FINE, patch), None)
    return show.plot_streams(panels, FINE)


def one_draw(route: Route) -> Draw:
    """A draw for one image of 16 x 16 tokens in a network of eight blocks."""
    return RoutePlan((route,), 8).draw(1, FINE, torch.Generator().manual_seed(1))


def samples() -> Figure:
    """Samples of the study at 256 tokens, dense and routed, from the same noise."""
    figure, axes = plt.subplots(2, 1, figsize=(5.4, 5.2), layout="constrained")
    names = {"dim-dense": "dense", "dim-50": "trained with half of the tokens dropped"}
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        steps, rows = zip(*_strip(name), strict=True)
        ax.imshow(np.concatenate(rows))
        side = len(rows[0])
        ax.set_yticks([(i + 0.5) * side for i in range(len(steps))], [f"{n:,}" for n in steps])
        ax.set_xticks([])
        ax.set_ylabel("steps")
        ax.set_title(title, fontsize=10, color=INK)
    return figure


def _strip(name: str) -> list[tuple[int, np.ndarray]]:
    """Samples of an arm of the study: steps and the row of images after them."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "study" / f"{name}.png"
    with Image.open(path) as strip:
        steps = [int(n) for n in strip.info["steps"].split()]
        return list(zip(steps, np.split(np.asarray(strip), len(steps)), strict=True))


def networks() -> Figure:
    """Samples of every network of the study after 600 steps, dense and routed, from one noise."""
    names = {
        "dim": "DiM",
        "dim2": "Mamba-2",
        "dim3": "Mamba-3",
        "hybrid": "Mamba-2 + attention",
        "zig": "ZigMamba",
        "dit": "DiT",
        "modern": "DiT, 2026",
    }
    figure, axes = plt.subplots(len(names), 2, figsize=(9.6, 3.9), layout="constrained")
    for row, (name, label) in zip(axes, names.items(), strict=True):
        for ax, arm in zip(row, ("dense", "50"), strict=True):
            ax.imshow(dict(_strip(f"{name}-{arm}"))[600])
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=INK)
    axes[0, 0].set_title("dense", fontsize=10, color=INK)
    axes[0, 1].set_title("trained with half of the tokens dropped", fontsize=10, color=INK)
    return figure


PICTURES: tuple[Callable[[], Figure], ...] = (
    routing,
    selections,
    orders,
    stream,
    rejoin,
    samples,
    networks,
)


def main() -> None:
    """Write the pictures, each under the name of its function."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("pictures"))
    out = parser.parse_args().out
    for picture in PICTURES:
        figure = picture()
        figure.savefig(out / f"{picture.__name__}.png", bbox_inches="tight", facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
