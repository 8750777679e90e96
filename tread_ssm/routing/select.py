"""Which tokens a route keeps: at random, whole rows, n x n cells, segments of a scan.

Every selection keeps the same number of tokens in each sample of a batch, so tensors stay
rectangular and a compiled graph serves every draw. Tokens compete in units (a token, a row, a
cell, a segment, a frame): each unit gets a random score, and those with the highest stay.

Each selection has two methods with one signature:

    n_kept(grid, drop) -> K
    draw(batch, grid, drop, keep, generator) -> TokenSubset

`grid` is (rows, columns) or (frames, rows, columns), in raster order; `drop` the share of units
that leave; keep_BN (bool) marks tokens that must stay, None none; `generator` is a CPU generator.
Rows, cells and segments are cut in each frame; `Frames` and `Tubes` are for video.

Shape legend: B batch, N tokens, K kept tokens, U units, F frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tread_ssm.tokens import Grid, TokenSubset, grid_text, is_whole

Keep: TypeAlias = Tensor | None
Random: TypeAlias = torch.Generator | None


@dataclass(frozen=True)
class RandomTokens:
    """Single tokens, uniformly at random (TREAD, arXiv 2501.04765).

    Attributes:
        kind: Always "random".
    """

    kind: Literal["random"] = field(default="random", kw_only=True)

    def n_kept(self, grid: Grid, drop: float) -> int:
        """K = N - floor(N * drop)."""
        return _remaining(math.prod(grid), drop)

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples."""
        n = math.prod(grid)
        index = _best(batch, n, self.n_kept(grid, drop), keep, generator, "tokens")
        return TokenSubset(index.sort(dim=1).values, n)


@dataclass(frozen=True)
class Rows:
    """Whole rows, the same ones in every frame; the kept tokens form a rectangle.

    Attributes:
        kind: Always "rows".
    """

    kind: Literal["rows"] = field(default="rows", kw_only=True)

    def n_kept(self, grid: Grid, drop: float) -> int:
        """K = (rows - floor(rows * drop)) * columns, times F."""
        return math.prod(grid) // grid[-2] * _remaining(grid[-2], drop)

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples; a row with a token that must stay stays."""
        return _slices(batch, grid, len(grid) - 2, drop, keep, generator, "rows")


@dataclass(frozen=True)
class Frames:
    """Whole frames of a video; the kept tokens form a box of (fewer frames, rows, columns).

    Attributes:
        kind: Always "frames".
    """

    kind: Literal["frames"] = field(default="frames", kw_only=True)

    def n_kept(self, grid: Grid, drop: float) -> int:
        """K = (F - floor(F * drop)) * rows * columns."""
        _check_video("Frames", grid)
        return math.prod(grid) // grid[0] * _remaining(grid[0], drop)

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples; a frame with a token that must stay stays."""
        _check_video("Frames", grid)
        return _slices(batch, grid, 0, drop, keep, generator, "frames")


@dataclass(frozen=True)
class Tubes:
    """Places of a video's frame at random, the same places in every frame.

    Attributes:
        kind: Always "tubes".
    """

    kind: Literal["tubes"] = field(default="tubes", kw_only=True)

    def n_kept(self, grid: Grid, drop: float) -> int:
        """K = F * (places - floor(places * drop)), places = rows * columns."""
        _check_video("Tubes", grid)
        return grid[0] * _remaining(math.prod(grid[1:]), drop)

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples; a place with a token that must stay stays."""
        _check_video("Tubes", grid)
        places = math.prod(grid[1:])
        flat = _slices(batch, (grid[0], places), 1, drop, keep, generator, "places")
        return TokenSubset(flat.index, flat.length)


@dataclass(frozen=True)
class Cells:
    """The grid in cells of size x size tokens.

    Attributes:
        kind: Always "cells".
        size: Tokens along a side of a cell; it must divide rows and columns.
        choose: "within" keeps the same share of every cell (stratified; with one token a cell
            this is the structured sampling of SPRINT), "whole" keeps or drops cells as a whole.
    """

    kind: Literal["cells"] = field(default="cells", kw_only=True)
    size: int = 2
    choose: Literal["within", "whole"] = "within"

    def __post_init__(self) -> None:
        if not is_whole(self.size) or self.size < 1:
            raise ValueError(f"Cells(size={self.size}): a cell has at least one token a side.")
        if self.choose not in ("within", "whole"):
            raise ValueError(f"Cells(choose={self.choose!r}): use 'within' or 'whole'.")

    def n_kept(self, grid: Grid, drop: float) -> int:
        """within: cells * (n^2 - floor(n^2 * drop)); whole: (cells - floor(cells * drop)) * n^2."""
        n_cells, places = self._cells(grid)
        if self.choose == "within":
            return n_cells * _remaining(places, drop)
        return _remaining(n_cells, drop) * places

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples; a token that must stay keeps its cell when whole."""
        n_cells, places = self._cells(grid)
        tokens = self._members(grid)  # (cells, n * n) raster positions
        forced = None if keep is None else keep[:, tokens]
        if self.choose == "whole":
            if forced is not None:
                forced = forced.any(dim=2)
            cell = _best(batch, n_cells, _remaining(n_cells, drop), forced, generator, "cells")
            return TokenSubset(tokens[cell].flatten(1).sort(dim=1).values, math.prod(grid))
        stay = _remaining(places, drop)
        if forced is not None:
            forced = forced.flatten(0, 1)
        place = _best(batch * n_cells, places, stay, forced, generator, "tokens of a cell")
        index = tokens.repeat(batch, 1).gather(1, place).reshape(batch, n_cells * stay)
        return TokenSubset(index.sort(dim=1).values, math.prod(grid))

    def _cells(self, grid: Grid) -> tuple[int, int]:
        if grid[-2] % self.size or grid[-1] % self.size:
            raise ValueError(
                f"Cells(size={self.size}): a grid of {grid_text(grid)} tokens cannot be cut "
                f"into cells of {self.size} x {self.size}; use a size that divides both sides."
            )
        return math.prod(grid) // self.size**2, self.size**2

    def _members(self, grid: Grid) -> Tensor:
        position = torch.arange(math.prod(grid)).reshape(-1, *grid[-2:])
        cells = position.unfold(1, self.size, self.size).unfold(2, self.size, self.size)
        return cells.reshape(-1, self.size**2)


@dataclass(frozen=True)
class Segments:
    """Runs of `length` tokens that follow one another along rows or columns.

    The runs start at a random phase (and wrap), so that their borders move from draw to draw;
    the tokens left over by the last whole run are kept.

    Attributes:
        kind: Always "segments".
        length: Tokens of a run.
        along: "rows" or "columns".
    """

    kind: Literal["segments"] = field(default="segments", kw_only=True)
    length: int = 16
    along: Literal["rows", "columns"] = "rows"

    def __post_init__(self) -> None:
        if not is_whole(self.length) or self.length < 1:
            raise ValueError(f"Segments(length={self.length}): a segment has at least one token.")
        if self.along not in ("rows", "columns"):
            raise ValueError(f"Segments(along={self.along!r}): use 'rows' or 'columns'.")

    def n_kept(self, grid: Grid, drop: float) -> int:
        """K = N - floor(floor(N / length) * drop) * length."""
        n = math.prod(grid)
        whole = n // self.length
        return n - (whole - _remaining(whole, drop)) * self.length

    def draw(
        self, batch: int, grid: Grid, drop: float, keep: Keep, generator: Random
    ) -> TokenSubset:
        """A subset for `batch` samples; a segment with a token that must stay stays."""
        n = math.prod(grid)
        whole = n // self.length
        path = torch.arange(n)
        if self.along == "columns":
            path = path.reshape(grid).transpose(-2, -1).flatten()
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


Select = RandomTokens | Rows | Frames | Tubes | Cells | Segments


def _check_video(name: str, grid: Grid) -> None:
    if len(grid) < 3:
        raise ValueError(
            f"{name}: a grid of {grid_text(grid)} tokens has no frames; draw on "
            f"(frames, rows, columns), or use Rows or RandomTokens."
        )


def _slices(
    batch: int, grid: Grid, axis: int, drop: float, keep: Keep, generator: Random, what: str
) -> TokenSubset:
    """Whole slices of the grid across `axis`; the kept tokens form a grid as well."""
    size, stay = grid[axis], _remaining(grid[axis], drop)
    others = tuple(d + 1 for d in range(len(grid)) if d != axis)
    forced = None if keep is None or not others else keep.unflatten(1, grid).any(dim=others)
    chosen = _best(batch, size, stay, forced, generator, what).sort(dim=1).values
    kept = (*grid[:axis], stay, *grid[axis + 1 :])
    position = torch.arange(math.prod(grid)).reshape(grid).movedim(axis, 0)
    index = position[chosen].movedim(1, axis + 1)  # (B, *kept)
    return TokenSubset(index.reshape(batch, -1), math.prod(grid), kept)


def _remaining(n: int, drop: float) -> int:
    # The small constant keeps products such as 100 * 0.29 = 28.999... from losing one.
    return n - math.floor(n * drop + 1e-9)


def _best(batch: int, units: int, stay: int, forced: Keep, generator: Random, what: str) -> Tensor:
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
