"""Pictures of routes at work: which tokens are kept, how scans visit them, what blocks see.

Shape legend: B batch, N tokens, K kept tokens, P prefix tokens, H, W image height and width in
pixels, D channels of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from einops import rearrange
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from tread_ssm.plots.colours import (
    DROPPED,
    FADED,
    INK,
    KEPT,
    PALE,
    PREFIX,
    bare,
    new_figure,
    plain,
)
from tread_ssm.routing.plan import Draw
from tread_ssm.tokens import TokenSubset

Grid = tuple[int, int]

TIME = colormaps["plasma"]


def plot_kept(
    image: np.ndarray, subsets: Mapping[str, TokenSubset], grid: Grid, columns: int = 4
) -> Figure:
    """The image cut into tokens, whole and as each subset leaves it; dropped tokens are faded.

    Args:
        image: uint8 (H, W, 3).
        subsets: By title; the first sample of each is shown.
        grid: (rows, columns) of tokens.
        columns: Panels a row.
    """
    panels = [("all tokens", None), *subsets.items()]
    figure, axes = _panels(len(panels), columns, 2.45, 3.0)
    for ax, (title, subset) in zip(axes, panels, strict=False):
        n = grid[0] * grid[1]
        kept = np.ones(n, bool) if subset is None else subset.mask()[0].cpu().numpy()
        _plot_tokens(ax, image, kept, grid)
        ax.set_title(f"{title}\n{int(kept.sum())} of {n} tokens", fontsize=9.5, color=INK)
    return figure


def scan_path(rank: Tensor, grid: Grid, subset: TokenSubset | None = None) -> Tensor:
    """Raster positions in the order in which a scan visits the first sample's tokens.

    Args:
        rank: (N,) int64, of `scan.order.rank_table`.
        grid: (rows, columns) of tokens.
        subset: Kept tokens. None keeps all.

    Returns:
        (K,) int64.
    """
    if subset is None:
        return rank.argsort()
    return subset.index[0][rank[subset.index[0]].argsort()]


def neighbours(path: Tensor, grid: Grid) -> float:
    """The share of steps along a path of raster positions that end on a neighbouring token."""
    row, column = path // grid[1], path % grid[1]
    distance = (row.diff()).abs() + (column.diff()).abs()
    return float((distance == 1).double().mean())


def plot_paths(paths: Mapping[str, Tensor], grid: Grid, columns: int = 4) -> Figure:
    """Scans as lines over the grid, coloured by time from the first visit to the last.

    Args:
        paths: By title, (K,) raster positions in visiting order; tokens that no path visits are
            pale.
        grid: (rows, columns) of tokens.
        columns: Panels a row.
    """
    figure, axes = _panels(len(paths), columns, 2.45, 3.0)
    for ax, (title, path) in zip(axes, paths.items(), strict=False):
        _plot_path(ax, path.cpu().numpy(), grid)
        share = neighbours(path, grid)
        ax.set_title(f"{title}\n{share:.0%} of steps to a neighbour", fontsize=9.5, color=INK)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), TIME), ax=axes, shrink=0.5, aspect=30, pad=0.015
    )
    bar.set_ticks([0, 1], labels=["first\nvisit", "last\nvisit"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9)
    figure.set_dpi(80)  # many thin lines in many colours: the file would be large
    return figure


def plot_stream(draw: Draw, depth: int, grid: Grid, n_prefix: int = 0) -> Figure:
    """What each block sees of the first sample: a column a block, a row a token.

    Above: the length of the stream in each block.
    """
    n = grid[0] * grid[1]
    seen = np.full((n_prefix + n, depth), 0)  # 0 kept, 1 carried past the block, 2 prefix
    seen[:n_prefix] = 2
    for route, subset in draw:
        mask = subset.mask()[0].cpu().numpy()
        seen[n_prefix:, route.start : route.stop] = np.where(mask, 0, 1)[:, None]
    figure, (top, main) = new_figure(
        0.55 * depth + 2.2, 5.2, 2, 1, sharex=True, height_ratios=(1, 4)
    )
    counts = (seen != 1).sum(axis=0)
    bars = top.bar(range(depth), counts, color=[KEPT if c < seen.shape[0] else INK for c in counts])
    top.bar_label(bars, fontsize=8, padding=1)
    top.set_ylim(0, 1.3 * seen.shape[0])
    bare(top)
    top.tick_params(length=0)
    top.set_ylabel("tokens", color=INK)
    colours = ListedColormap([KEPT, DROPPED, PREFIX])
    main.imshow(seen, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    for i in range(depth + 1):
        main.axvline(i - 0.5, color="white", lw=4)
    main.set_xticks(range(depth))
    main.set_yticks([])
    main.tick_params(length=0)
    main.spines[:].set_visible(False)
    main.set_xlabel("block")
    main.set_ylabel("tokens of the stream, raster order")
    names = [(KEPT, "seen by the block"), (DROPPED, "carried past it, unchanged")]
    names += [(PREFIX, "prefix, always seen")] if n_prefix else []
    figure.legend(
        handles=[Patch(color=c, label=label) for c, label in names],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def plot_streams(images: Mapping[str, tuple[np.ndarray, np.ndarray | None]], grid: Grid) -> Figure:
    """Images side by side, each with the tokens that are missing from it.

    Args:
        images: By title, (image float (H, W, 3) in 0..1, bool (N,) of the tokens that are there or
            None for all).
        grid: (rows, columns) of tokens.
    """
    figure, axes = _panels(len(images), 3, 2.75, 3.0)
    for ax, (title, (image, present)) in zip(axes, images.items(), strict=False):
        shown = (image.clip(0, 1) * 255).round().astype(np.uint8)
        kept = np.ones(grid[0] * grid[1], bool) if present is None else present
        _plot_tokens(ax, shown, kept, grid, blank=True)
        ax.set_title(title, fontsize=9.5, color=INK)
    return figure


def plot_changes(change: Tensor, subset: TokenSubset, grid: Grid) -> Figure:
    """How far each token of the first sample moved between a route's start and its end.

    Args:
        change: (N,) at least 0. Left as a map, with orange where it is exactly 0; right sorted,
            kept and dropped tokens apart.
        subset: The route's kept tokens.
        grid: (rows, columns) of tokens.
    """
    kept = subset.mask()[0].cpu().numpy()
    values = change.detach().cpu().double().numpy()
    figure, (left, right) = new_figure(8.4, 3.5, 1, 2, width_ratios=(1, 1.35))
    norm = Normalize(0, values.max())
    picture = left.imshow(values.reshape(grid), cmap="Blues", norm=norm, interpolation="nearest")
    for p in np.flatnonzero(values == 0):
        corner = (p % grid[1] - 0.5, p // grid[1] - 0.5)
        left.add_patch(Rectangle(corner, 1, 1, color=DROPPED, lw=0, alpha=0.9))
    bare(left)
    bar = figure.colorbar(picture, ax=left, shrink=0.85)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label("change of the token (norm)", fontsize=9)
    left.set_title("orange: exactly 0", fontsize=9.5, color=INK)
    for mask, colour, name in ((kept, KEPT, "kept"), (~kept, DROPPED, "dropped")):
        sorted_values = np.sort(values[mask])[::-1]
        right.plot(sorted_values, ".", color=colour, ms=5)
        right.annotate(
            f"{int(mask.sum())} {name} tokens",
            (len(sorted_values) / 2, sorted_values[len(sorted_values) // 2]),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=10,
            weight="bold",
        )
    right.set(xlabel="tokens, the most changed first", ylabel="change of the token (norm)")
    plain(right)
    right.set_ylim(-0.04 * values.max(), 1.12 * values.max())
    return figure


def cut(image: Tensor, patch: int) -> Tensor:
    """Image (H, W, C) -> tokens (1, N, patch * patch * C) in raster order."""
    return rearrange(image, "(h p) (w q) c -> 1 (h w) (p q c)", p=patch, q=patch)


def joined(tokens: Tensor, grid: Grid, patch: int) -> np.ndarray:
    """The first sample's tokens (B, N, patch * patch * C) as an image (H, W, C)."""
    image = rearrange(tokens[0], "(h w) (p q c) -> (h p) (w q) c", h=grid[0], p=patch, q=patch)
    return image.detach().cpu().numpy()


def _panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    figure, axes = new_figure(width * columns, height * rows, rows, columns)
    for ax in axes:
        bare(ax)
    return figure, axes


def _plot_tokens(
    ax: Axes, image: np.ndarray, kept: np.ndarray, grid: Grid, blank: bool = False
) -> None:
    """uint8 image (H, W, 3) with white lines between tokens; the rest faded, or left out."""
    rows, columns = grid
    high, wide = image.shape[0] // rows, image.shape[1] // columns
    there = np.repeat(np.repeat(kept.reshape(grid), high, axis=0), wide, axis=1)[:, :, None]
    faded = np.array(to_rgb(PALE)) if blank else 0.85 * np.array(to_rgb(FADED)) + 0.15 * image / 255
    shown = np.where(there, image / 255, faded)
    ax.imshow(shown, extent=(0, columns, rows, 0), interpolation="nearest")
    for i in range(rows + 1):
        ax.axhline(i, color="white", lw=0.9)
    for i in range(columns + 1):
        ax.axvline(i, color="white", lw=0.9)


def _plot_path(ax: Axes, path: np.ndarray, grid: Grid) -> None:
    rows, columns = grid
    shade = np.full((rows, columns, 3), 0.955)
    shade.reshape(-1, 3)[path] = (0.80, 0.87, 0.945)
    ax.imshow(shade, extent=(0, columns, rows, 0), interpolation="nearest")
    for i in range(rows + 1):
        ax.axhline(i, color="white", lw=0.9)
    for i in range(columns + 1):
        ax.axvline(i, color="white", lw=0.9)
    points = np.stack([path % columns + 0.5, path // columns + 0.5], axis=1)
    steps = list(np.stack([points[:-1], points[1:]], axis=1))
    time = np.linspace(0, 1, len(steps))
    ax.add_collection(LineCollection(steps, colors=TIME(time), linewidths=1.4, capstyle="round"))
    for place, mark, colour in ((points[0], "o", TIME(0.0)), (points[-1], "s", TIME(1.0))):
        ax.plot(*place, mark, color=colour, ms=6, mec=INK, mew=0.8)
