"""Which tokens a route keeps: at random, whole rows, n x n cells, segments of a scan.

Every selection keeps the same number of tokens in each sample of a batch, so tensors stay
rectangular and a compiled graph serves every draw. Tokens compete in units (a token, a row, a
cell, a segment): units draw a random score and the best stay.

Shape legend: B batch, N tokens, K kept tokens, U units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tread_ssm.tokens import TokenSubset


@dataclass(frozen=True)
class RandomTokens:
    """Single tokens, uniformly at random (TREAD, arXiv 2501.04765)."""

    kind: Literal["random"] = field(default="random", kw_only=True)

    def n_kept(self, grid: tuple[int, int], drop: float) -> int:
        """K = N - floor(N * drop)."""
        return _remaining(grid[0] * grid[1], drop)

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        drop: float,
        keep: Tensor | None,
        generator: torch.Generator | None,
    ) -> TokenSubset:
        """A subset of `batch` samples; keep_BN (bool) marks tokens that must stay."""
        n = grid[0] * grid[1]
        index = _best(batch, n, self.n_kept(grid, drop), keep, generator, "tokens")
        return TokenSubset(index.sort(dim=1).values, n)


@dataclass(frozen=True)
class Rows:
    """Whole rows; the kept tokens form a rectangle (kept rows x columns)."""

    kind: Literal["rows"] = field(default="rows", kw_only=True)

    def n_kept(self, grid: tuple[int, int], drop: float) -> int:
        """K = (H - floor(H * drop)) * W."""
        return _remaining(grid[0], drop) * grid[1]

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        drop: float,
        keep: Tensor | None,
        generator: torch.Generator | None,
    ) -> TokenSubset:
        """As `RandomTokens.draw`; a row with a token that must stay stays."""
        rows, columns = grid
        forced = None if keep is None else keep.unflatten(1, grid).any(dim=2)
        kept = _remaining(rows, drop)
        row = _best(batch, rows, kept, forced, generator, "rows").sort(dim=1).values
        index = (row[:, :, None] * columns + torch.arange(columns)).flatten(1)
        return TokenSubset(index, rows * columns, (kept, columns))


@dataclass(frozen=True)
class Cells:
    """The grid in cells of size x size tokens.

    choose: "within" keeps the same share of every cell (stratified; with one token a cell this
            is the structured sampling of SPRINT), "whole" keeps or drops cells as a whole.
    """

    kind: Literal["cells"] = field(default="cells", kw_only=True)
    size: int = 2
    choose: Literal["within", "whole"] = "within"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Cells(size={self.size}): a cell has at least one token a side.")
        if self.choose not in ("within", "whole"):
            raise ValueError(f"Cells(choose={self.choose!r}): use 'within' or 'whole'.")

    def n_kept(self, grid: tuple[int, int], drop: float) -> int:
        """within: cells * (n^2 - floor(n^2 * drop)); whole: (cells - floor(cells * drop)) * n^2."""
        n_cells, places = self._cells(grid)
        if self.choose == "within":
            return n_cells * _remaining(places, drop)
        return _remaining(n_cells, drop) * places

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        drop: float,
        keep: Tensor | None,
        generator: torch.Generator | None,
    ) -> TokenSubset:
        """As `RandomTokens.draw`; a token that must stay keeps its cell when cells are whole."""
        n_cells, places = self._cells(grid)
        tokens = self._members(grid)  # (cells, n * n) raster positions
        forced = None if keep is None else keep[:, tokens]
        if self.choose == "whole":
            if forced is not None:
                forced = forced.any(dim=2)
            cell = _best(batch, n_cells, _remaining(n_cells, drop), forced, generator, "cells")
            return TokenSubset(tokens[cell].flatten(1).sort(dim=1).values, grid[0] * grid[1])
        stay = _remaining(places, drop)
        if forced is not None:
            forced = forced.flatten(0, 1)
        place = _best(batch * n_cells, places, stay, forced, generator, "tokens of a cell")
        index = tokens.repeat(batch, 1).gather(1, place).reshape(batch, n_cells * stay)
        return TokenSubset(index.sort(dim=1).values, grid[0] * grid[1])

    def _cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        if grid[0] % self.size or grid[1] % self.size:
            raise ValueError(
                f"Cells(size={self.size}): a grid of {grid[0]} x {grid[1]} tokens cannot be cut "
                f"into cells of {self.size} x {self.size}; use a size that divides both sides."
            )
        return grid[0] * grid[1] // self.size**2, self.size**2

    def _members(self, grid: tuple[int, int]) -> Tensor:
        position = torch.arange(grid[0] * grid[1]).reshape(grid)
        cells = position.unfold(0, self.size, self.size).unfold(1, self.size, self.size)
        return cells.reshape(-1, self.size**2)


@dataclass(frozen=True)
class Segments:
    """Runs of `length` tokens that follow one another along rows or columns.

    The runs start at a random phase (and wrap), so that their borders move from draw to draw;
    the tokens left over by the last whole run are kept.
    """

    kind: Literal["segments"] = field(default="segments", kw_only=True)
    length: int = 16
    along: Literal["rows", "columns"] = "rows"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Segments(length={self.length}): a segment has at least one token.")
        if self.along not in ("rows", "columns"):
            raise ValueError(f"Segments(along={self.along!r}): use 'rows' or 'columns'.")

    def n_kept(self, grid: tuple[int, int], drop: float) -> int:
        """K = N - floor(floor(N / length) * drop) * length."""
        n = grid[0] * grid[1]
        whole = n // self.length
        return n - (whole - _remaining(whole, drop)) * self.length

    def draw(
        self,
        batch: int,
        grid: tuple[int, int],
        drop: float,
        keep: Tensor | None,
        generator: torch.Generator | None,
    ) -> TokenSubset:
        """As `RandomTokens.draw`; a segment with a token that must stay stays."""
        n = grid[0] * grid[1]
        whole = n // self.length
        path = torch.arange(n)
        if self.along == "columns":
            path = path.reshape(grid).T.flatten()
        phase = torch.randint(n, (batch, 1), generator=generator)
        path = path[(torch.arange(n) + phase) % n]  # (B, N), raster positions along the scan
        runs, rest = path[:, : whole * self.length], path[:, whole * self.length :]
        runs = runs.unflatten(1, (whole, self.length)) if whole else runs.unflatten(1, (0, 1))
        forced = None
        if keep is not None:
            forced = keep.gather(1, runs.flatten(1)).unflatten(1, runs.shape[1:]).any(dim=2)
        stay = _remaining(whole, drop)
        chosen = _best(batch, whole, stay, forced, generator, "segments")
        kept = runs.gather(1, chosen[:, :, None].expand(-1, -1, runs.shape[2])).flatten(1)
        return TokenSubset(torch.cat([kept, rest], dim=1).sort(dim=1).values, n)


Select = RandomTokens | Rows | Cells | Segments


def _remaining(n: int, drop: float) -> int:
    # The small constant keeps products such as 100 * 0.29 = 28.999... from losing one.
    return n - math.floor(n * drop + 1e-9)


def _best(
    batch: int,
    units: int,
    stay: int,
    forced: Tensor | None,
    generator: torch.Generator | None,
    what: str,
) -> Tensor:
    """(batch, stay) ids of the units that stay; forced units come first."""
    score = torch.rand(batch, units, generator=generator)
    if forced is not None:
        most = int(forced.sum(dim=1).max()) if units else 0
        if most > stay:
            raise ValueError(
                f"{most} {what} must stay, but only {stay} of {units} are kept; drop less or "
                f"keep fewer."
            )
        score = score + forced
    return score.topk(stay, dim=1, sorted=False).indices
