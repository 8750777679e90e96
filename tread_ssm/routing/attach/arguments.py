"""The arguments of blocks that were not written for routing, inside a route.

Shape legend: B batch, N image tokens, K kept ones, P prefix tokens, S = P + N, D channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from tread_ssm.tokens import TokenSubset

Streams: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class PerToken:
    """How an argument of the blocks goes along with the tokens.

    dim:        where the tokens stand; -2 as in rotary tables (N, d) and in streams (B, N, D);
                both of (-2, -1) in a mask or bias for pairs of tokens (..., N, N).
                Before the N image tokens there may be others, which are kept: the class token, or
                the text tokens of a table that is made for text and image together.
                A tensor whose first size is 1 or the batch's is taken sample by sample.
    per_sample: what becomes of a table without a batch, (..., N, d), when each sample keeps other
                tokens: "batch" (B, K, d), "heads" (B, 1, K, d), or "refuse", for blocks that take
                one table for the whole batch. Those need one draw for all: `plan.draw(1, grid)`.
    """

    dim: int | tuple[int, ...] = -2
    per_sample: Literal["refuse", "batch", "heads"] = "refuse"


@dataclass(frozen=True)
class Signature:
    """What the arguments and results of the blocks are; see `attach`."""

    streams: tuple[str, ...] | None
    returns: tuple[int, ...]
    per_token: Mapping[str, PerToken]
    whole: tuple[str, ...]
    grid_arguments: tuple[str, str] | None
    n_prefix: int


@dataclass(frozen=True)
class Call:
    """One call of a block, with its arguments by name."""

    number: int
    kind: str
    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signature: Signature

    @property
    def name(self) -> str:
        """For messages."""
        return f"block {self.number} ({self.kind})"

    @property
    def values(self) -> dict[str, Any]:
        """The arguments by name, those of `args` first and in their order."""
        further = (f"argument {k + 1}" for k in range(len(self.names), len(self.args)))
        return dict(zip((*self.names, *further), self.args, strict=False)) | self.kwargs

    def first_stream(self) -> Any:
        """What stands where the first stream is expected."""
        return self.values.get(self._stream_names()[0])

    def streams(self) -> Streams:
        """The stream tensors (B, S or P + K, D)."""
        found, values = [], self.values
        for name in self._stream_names():
            value = values.get(name)
            if not isinstance(value, Tensor) or value.dim() != 3:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"attach: {self.name}: the stream `{name}` is {what}; expected a tensor "
                    f"(batch, tokens, channels). Blocks on 4-D maps (windows) cannot be routed; "
                    f"another argument can be named as streams=(...)."
                )
            found.append(value)
        return tuple(found)

    def inside(self, subset: TokenSubset, enters: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for a block in a route: streams taken where it enters, tables always."""
        batch, seen = self.streams()[0].shape[:2]
        prefix = self.signature.n_prefix
        whole = of_stream(subset, batch, prefix)
        if seen != (whole.length if enters else whole.n_kept):
            raise ValueError(
                f"attach: {self.name}: the stream has {seen} tokens inside a route that keeps "
                f"{whole.n_kept} of {whole.length}; nothing may change its length between blocks."
            )
        new = {
            name: self._along(name, value, subset, whole, batch, enters)
            for name, value in self.values.items()
        }
        args = tuple(new.values())[: len(self.args)]
        return args, {name: new[name] for name in self.kwargs}

    def _along(
        self,
        name: str,
        value: Any,
        subset: TokenSubset,
        whole: TokenSubset,
        batch: int,
        enters: bool,
    ) -> Any:
        signature = self.signature
        if name in self._stream_names():
            return whole.take(value) if enters else value
        if name in signature.per_token:
            return map_tensors(
                value, lambda t: _take(t, name, signature.per_token[name], subset, batch, self.name)
            )
        if signature.grid_arguments is not None and name in signature.grid_arguments:
            if subset.grid is None:
                raise ValueError(
                    f"attach: {self.name} is told the grid by `{name}`, but the {subset.n_kept} "
                    f"kept tokens form no rectangle; choose a selection that keeps one (Rows)."
                )
            return subset.grid[signature.grid_arguments.index(name)]
        if name not in signature.whole:
            map_tensors(
                value, lambda t: self._refuse_undeclared(name, t, subset.length, whole.length)
            )
        return value

    def _refuse_undeclared(self, name: str, tensor: Tensor, n: int, s: int) -> None:
        # The first dimension is the batch, which may happen to equal N.
        sizes = tensor.shape if tensor.dim() < 2 else tensor.shape[1 if tensor.dim() > 2 else 0 :]
        # A table for text and image together is as long as both.
        joint = {length + text for length in (n, s) for text in self._beside()}
        if n in sizes or s in sizes or (tensor.dim() > 1 and tensor.shape[-2] in joint):
            raise ValueError(
                f"attach: {self.name}: argument `{name}` has shape {tuple(tensor.shape)} and the "
                f"model {n} image tokens ({s} with prefix), so it may go by tokens; declare it: "
                f"per_token={{{name!r}: PerToken(dim=...)}} if it does, whole=({name!r},) if not. "
                f"A long skip from outside the route cannot be routed so; use run_blocks(skips=)."
            )

    def _beside(self) -> set[int]:
        """Lengths of other sequences (B, T, D) that the block gets, such as text."""
        known = {*self._stream_names(), *self.signature.per_token}
        return {
            value.shape[1]
            for name, value in self.values.items()
            if isinstance(value, Tensor) and value.dim() == 3 and name not in known
        }

    def _stream_names(self) -> tuple[str, ...]:
        return self.signature.streams or self.names[:1] or ("argument 1",)


def argument_names(block: nn.Module) -> tuple[tuple[str, ...], frozenset[str] | None]:
    """Names of a block's positional arguments, and of all of them; None where it takes any.

    A wrapper that takes anything and holds one module (checkpoints, compiled modules) has the
    names of what it wraps.
    """
    parameters = inspect.signature(block.forward).parameters.values()
    places = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    inner = list(block.children())
    if anything and not places and len(inner) == 1:
        return argument_names(inner[0])
    return places, None if anything else frozenset(p.name for p in parameters)


def of_stream(subset: TokenSubset, batch: int, n_prefix: int) -> TokenSubset:
    """The subset for `batch` samples of a stream with its prefix."""
    shared = replace(subset, index=subset.index.expand(batch, -1))
    return shared.with_prefix(n_prefix)


def _take(
    table: Tensor, name: str, how: PerToken, subset: TokenSubset, batch: int, block: str
) -> Tensor:
    """The entries of a per-token tensor that belong to the kept tokens, those in front kept."""
    for dim in (how.dim,) if isinstance(how.dim, int) else how.dim:
        table = _take_along(table, dim, name, how, subset, batch, block)
    return table


def _take_along(
    table: Tensor,
    dim: int,
    name: str,
    how: PerToken,
    subset: TokenSubset,
    batch: int,
    block: str,
) -> Tensor:
    dim %= table.dim()
    front = table.shape[dim] - subset.length
    if front < 0:
        raise ValueError(
            f"attach: {block}: `{name}` is declared per token in dimension {how.dim}, but has "
            f"shape {tuple(table.shape)} for {subset.length} image tokens; "
            f"declare PerToken(dim=...)."
        )
    index = subset.with_prefix(front).index
    if index.shape[0] == 1:
        return table.index_select(dim, index[0])
    if dim > 0 and table.shape[0] == batch:
        rows = index.reshape(batch, *([1] * (dim - 1)), -1, *([1] * (table.dim() - dim - 1)))
        sizes = list(table.shape)
        sizes[dim] = index.shape[1]
        return table.gather(dim, rows.expand(sizes))
    if dim > 0 and table.shape[0] == 1:
        expanded = table.expand(batch, *table.shape[1:])
        return _take_along(expanded, dim, name, how, subset, batch, block)
    if how.per_sample == "refuse" or dim != 0:
        raise ValueError(
            f"attach: {block}: `{name}` of shape {tuple(table.shape)} is one table for the whole "
            f"batch, but each of the {batch} samples keeps other tokens; draw one for all with "
            f"plan.draw(1, grid), or declare PerToken(per_sample='heads' or 'batch') if the block "
            f"takes a table per sample."
        )
    rows = table[index]  # (B, K, ...)
    return rows if how.per_sample == "batch" else rows[:, None]


def map_tensors(value: Any, f: Callable[[Tensor], Any]) -> Any:
    """f over a tensor, or over those in tuples, lists and dictionaries; the rest as it is."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {key: map_tensors(v, f) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return like(value, [map_tensors(v, f) for v in value])
    return value


def like(sequence: Any, items: Sequence[Any]) -> Any:
    """A tuple, named tuple or list as `sequence` is, of other items."""
    return sequence._make(items) if hasattr(sequence, "_make") else type(sequence)(items)
