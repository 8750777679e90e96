"""Scan orders as rank tables.

An order is a permutation of a grid's N = H * W tokens, held as rank_N: rank[p] is the time at
which raster position p is visited. Reversing an order is `N - 1 - rank`; the order among any
subset of the tokens is `argsort(rank[subset])`, so dense and routed scans follow one rule.

Sources: snake and the eight zigzags follow ZigMa (Hu et al., arXiv 2403.13802, section 3.3):
serpentine paths that start in one of four corners and run along rows or along columns.
The Hilbert order is that of the smallest enclosing square with a power-of-two side, restricted to
the grid: on such squares neighbours in time touch, on other grids it jumps where the curve leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

OrderName = Literal[
    "raster",
    "raster_reversed",
    "column",
    "column_reversed",
    "snake",
    "zigzag_0",
    "zigzag_1",
    "zigzag_2",
    "zigzag_3",
    "zigzag_4",
    "zigzag_5",
    "zigzag_6",
    "zigzag_7",
    "hilbert",
]
ORDER_NAMES: tuple[OrderName, ...] = get_args(OrderName)
ZIGZAGS: tuple[OrderName, ...] = tuple(n for n in ORDER_NAMES if n.startswith("zigzag"))


def rank_table(name: OrderName, grid: tuple[int, int]) -> Tensor:
    """When each position of a grid is visited.

    Args:
        name: Of the order.
        grid: (rows, columns).

    Returns:
        (N,) int64 on the CPU, the rank of each raster position, N = rows * columns.

    Raises:
        ValueError: The name is unknown, or the grid is empty.
    """
    rows, columns = grid
    if name not in ORDER_NAMES:
        raise ValueError(f"rank_table: unknown order {name!r}; there are {', '.join(ORDER_NAMES)}.")
    if rows < 1 or columns < 1:
        raise ValueError(f"rank_table: grid {grid} has no tokens; both sides must be at least 1.")
    path = torch.tensor(_path(name, rows, columns))
    rank = torch.empty_like(path)
    rank[path] = torch.arange(rows * columns)
    return rank


@cache
def _path(name: OrderName, rows: int, columns: int) -> tuple[int, ...]:
    """Raster positions in visiting order."""
    raster = range(rows * columns)
    if name.endswith("_reversed"):
        base: OrderName = "raster" if name == "raster_reversed" else "column"
        return _path(base, rows, columns)[::-1]
    if name == "raster":
        return tuple(raster)
    if name == "column":
        return tuple(r * columns + c for c in range(columns) for r in range(rows))
    if name == "hilbert":
        square = _hilbert(1 << (max(rows, columns) - 1).bit_length())
        return tuple(r * columns + c for r, c in square if r < rows and c < columns)
    number = 0 if name == "snake" else int(name[-1])
    return tuple(r * columns + c for r, c in _zigzag(number, rows, columns))


def _zigzag(number: int, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Serpentine path `number`: bit 0 runs along columns, bits 1 and 2 choose the corner."""
    along_columns, from_right, from_bottom = number & 1, number & 2, number & 4
    lines, steps = (columns, rows) if along_columns else (rows, columns)
    for line in range(lines):
        for step in range(steps) if line % 2 == 0 else reversed(range(steps)):
            r, c = (step, line) if along_columns else (line, step)
            yield (rows - 1 - r if from_bottom else r, columns - 1 - c if from_right else c)


def _hilbert(size: int) -> list[tuple[int, int]]:
    """Hilbert's curve over a square whose side is a power of two, from top left to top right."""
    if size == 1:
        return [(0, 0)]
    half = size // 2
    part = _hilbert(half)
    return [
        *((c, r) for r, c in part),  # top left, mirrored so that it ends at the bottom
        *((r + half, c) for r, c in part),
        *((r + half, c + half) for r, c in part),
        *((half - 1 - c, size - 1 - r) for r, c in part),  # top right, from the bottom up
    ]
