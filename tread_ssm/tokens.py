"""Where tokens sit, and which of them are kept.

Shape legend: B batch, N tokens of a grid (rows x columns), K kept tokens, P prefix tokens
(time, class ...), S = P + K tokens of a stream. `...` are any further dimensions.

A *stream* is a tensor x_BS... that holds P prefix tokens followed by image tokens in raster
order (row by row). It never leaves that order: blocks that scan along another order ask
`Layout.visits` for a permutation and hand it to their kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Grid: TypeAlias = tuple[int, ...]
"""Sizes of the token grid, slowest first: (rows, columns), or (frames, rows, columns)."""


def grid_text(grid: Grid) -> str:
    """For messages: 4 x 6."""
    return " x ".join(map(str, grid))


def is_whole(value: Any) -> bool:
    """Whether a value is an int, and no bool; symbolic sizes of a compiled graph are ints too."""
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def check_grid(where: str, grid: Any) -> None:
    """Raise ValueError unless `grid` is two or more whole numbers, each at least 1."""
    fits = isinstance(grid, (tuple, list)) and len(grid) > 1
    if not fits or not all(is_whole(n) and n >= 1 for n in grid):
        raise ValueError(
            f"{where}: grid is {grid!r}; it is (rows, columns) or (frames, rows, columns), whole "
            f"numbers of at least 1."
        )


@dataclass(frozen=True)
class TokenSubset:
    """The K of N tokens that stay in a stream; the others are dropped from it.

    `TokenSubset.of` sorts and checks ids from outside; the bare constructor trusts its caller.
    K = 0 stands for a route whose blocks are skipped altogether, by prefix and padding tokens too.

    Attributes:
        index: (B, K) int64, ascending raster positions in [0, N).
        length: N.
        grid: Sizes whose product is K, only where the kept tokens form a rectangle (or box) that
            blocks with neighbourhoods may rely on; otherwise None.
        full_grid: Sizes whose product is N, the grid that was drawn on; None where unknown.
    """

    index: Tensor
    length: int
    grid: Grid | None = None
    full_grid: Grid | None = None

    @classmethod
    def of(cls, index: Tensor, length: int, grid: Grid | None = None) -> TokenSubset:
        """A subset from ids in any order.

        Args:
            index: (B, K) integers, distinct positions of a sample's kept tokens.
            length: N, tokens of the whole sequence.
            grid: Of the kept tokens, where they form one: its product is K.

        Raises:
            ValueError: Ids are wrong, doubled or none, or `grid` has another number of places.
        """
        if index.dim() != 2 or index.shape[1] == 0 or not _is_ids(index):
            raise ValueError(
                f"TokenSubset.of: index must be an integer tensor (batch, kept >= 1), got "
                f"{index.dtype} of shape {tuple(index.shape)}; pass one row of ids per sample."
            )
        index = index.to(torch.int64).sort(dim=1).values
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= length:
            raise ValueError(
                f"TokenSubset.of: ids run from {low} to {high}, but there are {length} tokens; "
                f"ids must lie in 0..{length - 1}."
            )
        if bool((index[:, 1:] == index[:, :-1]).any()):
            raise ValueError("TokenSubset.of: an id stands twice in a row; ids must be distinct.")
        if grid is not None and math.prod(grid) != index.shape[1]:
            raise ValueError(
                f"TokenSubset.of: grid {grid} has {math.prod(grid)} places, but "
                f"{index.shape[1]} tokens are kept."
            )
        return cls(index, length, grid)

    @property
    def n_kept(self) -> int:
        """K."""
        return self.index.shape[1]

    @property
    def is_all(self) -> bool:
        """Whether nothing is dropped."""
        return self.n_kept == self.length

    @property
    def is_none(self) -> bool:
        """Whether everything is dropped."""
        return self.n_kept == 0

    def take(self, x: Tensor) -> Tensor:
        """x_BN... -> the kept tokens x_BK..., in raster order.

        Raises:
            ValueError: x does not have the subset's B and N.
        """
        self._check(x, self.length, "take")
        return x.flatten(0, 1).index_select(0, self._rows()).unflatten(0, self.index.shape)

    def put(self, x: Tensor, into: Tensor) -> Tensor:
        """The kept tokens x_BK... written over their places in into_BN...; out of place.

        Gradients reach x at the kept places and `into` at the dropped ones.

        Args:
            x: (B, K, ...), what the kept tokens become.
            into: (B, N, ...), what all tokens were.

        Returns:
            (B, N, ...) in the dtype of `into`.

        Raises:
            ValueError: The shapes are not those of this subset.
        """
        self._check(x, self.n_kept, "put")
        self._check(into, self.length, "put (into)")
        rows = into.flatten(0, 1).index_copy(0, self._rows(), x.flatten(0, 1).to(into.dtype))
        return rows.unflatten(0, into.shape[:2])

    def mask(self) -> Tensor:
        """(B, N) bool, True where a token is kept."""
        shape = (self.index.shape[0], self.length)
        kept = torch.zeros(shape, dtype=torch.bool, device=self.index.device)
        return kept.scatter(1, self.index, True)

    def with_prefix(self, n: int) -> TokenSubset:
        """The same subset of a stream that has n more tokens in front, all kept (unless K is 0)."""
        if n == 0:
            return self
        if self.is_none:
            return TokenSubset(self.index, self.length + n)
        prefix = torch.arange(n, device=self.index.device).expand(self.index.shape[0], n)
        return TokenSubset(torch.cat([prefix, self.index + n], dim=1), self.length + n)

    def embed(self, positions: Tensor, length: int, also: Tensor) -> TokenSubset:
        """The subset carried over to a larger grid, with further tokens kept beside it.

        Args:
            positions: (N,) int64, where token i sits among `length` tokens, ascending.
            length: Tokens of the larger grid.
            also: (E,) int64, tokens of the larger grid that are kept in every sample, unless K is
                0.
        """
        if self.is_none:
            return TokenSubset(self.index, length)
        extra = also.expand(self.index.shape[0], -1)
        index = torch.cat([positions[self.index], extra], dim=1).sort(dim=1).values
        return TokenSubset(index, length)

    def to(self, device: torch.device | str) -> TokenSubset:
        """The subset with its index on `device`."""
        return replace(self, index=self.index.to(device, non_blocking=True))

    def _rows(self) -> Tensor:
        # Ids into the (B * N) rows: whole rows move at once, where a gather along dim 1 would
        # read an int64 for every element of x.
        batch = torch.arange(self.index.shape[0], device=self.index.device)
        return (self.index + batch[:, None] * self.length).flatten()

    def _check(self, x: Tensor, expected: int, what: str) -> None:
        if x.dim() < 2 or x.shape[0] != self.index.shape[0] or x.shape[1] != expected:
            raise ValueError(
                f"TokenSubset.{what}: expected a tensor ({self.index.shape[0]}, {expected}, ...), "
                f"got {tuple(x.shape)}; the subset keeps {self.n_kept} of {self.length} tokens "
                f"for a batch of {self.index.shape[0]}."
            )


@dataclass(frozen=True)
class Visits:
    """How a scan visits the S tokens of a stream.

    Attributes:
        index: (S,) or (B, S) int64, the stream's positions in the order of their visits, prefix
            first; None: 0, 1, 2 ... as the stream stands.
        gap: (B, S) int64 in the order of the visits: how many missing tokens lie between each
            visited token and the one visited before it. The first image token counts those since
            the prefix. None: nothing is missing.
    """

    index: Tensor | None
    gap: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """x_BSD of the stream -> its tokens in the order of their visits."""
        return x if self.index is None else x.gather(1, self._like(x))

    def put(self, x: Tensor) -> Tensor:
        """The inverse of `take`."""
        if self.index is None:
            return x
        return torch.empty_like(x).scatter(1, self._like(x), x)

    def _like(self, x: Tensor) -> Tensor:
        assert self.index is not None
        return self.index.unsqueeze(-1).expand_as(x)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a stream x_BS... sit, and how scans visit them.

    Every visit is computed once, when the layout is made: `argsort(rank[index])` behind the
    prefix, one rule for dense and routed streams, every order and grid. All blocks that see this
    stream share it.

    Attributes:
        grid: (rows, columns) of the full image grid, N = rows * columns; (frames, rows, columns)
            for video.
        index: (B, K) int64 ascending raster positions that are present; None: all N.
        n_prefix: P, tokens in front that have no place in the grid; always present, visited first.
        orders: The orders that blocks will ask for, by name: (N,) int64, the time at which each
            raster position of the full grid is visited (`scan.order.rank_table`). The order
            "raster" is the stream's own and needs no table.

    Raises:
        ValueError: Grid, index, orders or n_prefix are of the wrong kind. Ids and ranks are looked
            at on the CPU alone, because a GPU would have to be waited for.
    """

    grid: Grid
    index: Tensor | None = None
    n_prefix: int = 0
    orders: Mapping[str, Tensor] = field(default_factory=dict)
    _visits: dict[str, Visits] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        visits = {name: self._visited(rank) for name, rank in self.orders.items()}
        object.__setattr__(self, "_visits", {"raster": self._visited(None), **visits})

    @property
    def n_tokens(self) -> int:
        """S, the length of the stream."""
        present = math.prod(self.grid) if self.index is None else self.index.shape[1]
        return self.n_prefix + present

    def take(self, subset: TokenSubset) -> Layout:
        """The layout of the stream that is left when `subset` of the image tokens is kept."""
        index = subset.index if self.index is None else self.index.gather(1, subset.index)
        return Layout(self.grid, index, self.n_prefix, self.orders)

    def visits(self, order: str) -> Visits:
        """The stream's visits in one of `orders`, or in "raster".

        Raises:
            ValueError: The layout was made without this order.
        """
        if order not in self._visits:
            raise ValueError(
                f"Layout.visits: the order {order!r} is not among {', '.join(self._visits)}; "
                f"make the layout with orders={{{order!r}: rank_table({order!r}, grid)}}."
            )
        return self._visits[order]

    def backward(self, order: str, device: torch.device) -> Visits:
        """`visits(order)` from the last image token to the first; the prefix still comes first.

        Args:
            order: As for `visits`.
            device: Where the index is made, if the order has none.

        Raises:
            ValueError: As `visits`.
        """
        visits = self.visits(order)
        p, index, gap = self.n_prefix, visits.index, visits.gap
        if index is None:
            index = torch.arange(self.n_tokens, device=device)
        index = torch.cat([index[..., :p], index[..., p:].flip(-1)], dim=-1)
        if gap is None:
            return Visits(index, None)
        missing = math.prod(self.grid) + p - self.n_tokens
        behind = missing - gap.sum(1, keepdim=True)  # the last visit
        return Visits(index, torch.cat([gap[:, :p], behind, gap[:, p + 1 :].flip(1)], dim=1))

    def _visited(self, rank: Tensor | None) -> Visits:
        if self.index is None:
            return Visits(None if rank is None else self._behind_prefix(rank.argsort()), None)
        if rank is None:  # the present tokens stand in this order already
            order, times = None, self.index
        else:
            times, order = rank[self.index].sort(dim=1)
            order = self._behind_prefix(order)
        missing = times.diff(dim=1, prepend=torch.full_like(times[:, :1], -1)) - 1
        return Visits(order, F.pad(missing, (self.n_prefix, 0)))

    def _behind_prefix(self, order: Tensor) -> Tensor:
        if self.n_prefix == 0:
            return order
        prefix = torch.arange(self.n_prefix, device=order.device)
        prefix = prefix.expand(*order.shape[:-1], self.n_prefix)
        return torch.cat([prefix, order + self.n_prefix], dim=-1)

    def _check(self) -> None:
        check_grid("Layout", self.grid)
        if not is_whole(self.n_prefix) or self.n_prefix < 0:
            raise ValueError(
                f"Layout: n_prefix is {self.n_prefix!r}; it is a number of tokens, 0 or more."
            )
        n = math.prod(self.grid)
        for name, rank in self.orders.items():
            fits = rank.shape == (n,) and rank.dtype == torch.int64
            if fits and _readable(rank):
                fits = int(rank.min()) >= 0 and not bool((rank.bincount(minlength=n) != 1).any())
            if not fits:
                raise ValueError(
                    f"Layout: the order {name!r} is {rank.dtype} of shape {tuple(rank.shape)}; "
                    f"expected int64 (N,) that holds each of 0..{n - 1} once, for a grid of "
                    f"{grid_text(self.grid)}; scan.order.rank_table makes it."
                )
        if self.index is None:
            return
        if self.index.dim() != 2 or self.index.dtype != torch.int64:
            raise ValueError(
                f"Layout: index is {self.index.dtype} of shape {tuple(self.index.shape)}; expected "
                f"int64 raster positions (batch, kept)."
            )
        if _readable(self.index) and self.index.numel() and not _ascending(self.index, n):
            raise ValueError(
                f"Layout: index must hold ascending, distinct positions in 0..{n - 1} for a grid "
                f"of {grid_text(self.grid)}; TokenSubset.of(index, {n}).index sorts and checks "
                f"them."
            )


def _readable(x: Tensor) -> bool:
    """Whether looking at values costs no wait for a device and no graph."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _is_ids(index: Tensor) -> bool:
    return not index.is_floating_point() and not index.is_complex() and index.dtype != torch.bool


def _ascending(index: Tensor, n: int) -> bool:
    """Whether the rows of index_BK ascend within 0..n-1."""
    inside = bool(index[:, 0].min() >= 0) and bool(index[:, -1].max() < n)
    return inside and bool((index[:, 1:] > index[:, :-1]).all())
