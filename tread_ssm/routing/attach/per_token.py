"""Arguments of blocks that have an entry for each token: how they go along with a route.

Shape legend: B batch, N image tokens, K kept ones, d whatever a table holds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tread_ssm.tokens import TokenSubset

Image: TypeAlias = Literal["last", "first"]
"""Where the image's tokens stand among the others of a stream or table: behind or before them."""


Forms: TypeAlias = tuple[tuple[tuple[str, ...], tuple[str, ...] | None], ...]


@dataclass(frozen=True)
class PerToken:
    """How an argument of the blocks goes along with the tokens.

    Dimensions are named as in einops, never guessed: `n` are the tokens, `b` the batch, any other
    name is left alone. A table without `b` serves the whole batch. Where each sample keeps other
    tokens, it needs the form that the block takes with a batch behind an arrow; without an arrow
    such a draw is refused (and `plan.draw(1, grid)` gives one draw for all samples).

        PerToken("n d")               rotary table, one for the batch
        PerToken("n d -> b 1 n d")    the same, where blocks also take one table for each sample,
                                      with an axis for the heads
        PerToken("b 1 n n")           mask or bias for pairs of tokens
        PerToken("b n | b 1 n n")     either, told apart by the number of dimensions

    A table may hold the other tokens of the stream and those of a text, and one entry alone serves
    all tokens. Of a longer one, say where the image stands: "first" where blocks cut it as
    table[:n].

    Attributes:
        dims: The dimensions.
        image: Where the image's tokens stand in the table; None: as in the stream.
    """

    dims: str = "n d"
    image: Image | None = None
    _forms: Forms = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forms", _parsed(self.dims))

    @property
    def forms(self) -> Forms:
        """For each form the names of the dimensions, before the arrow and (or None) behind it."""
        return self._forms


How: TypeAlias = "PerToken | str | Callable[[Any, Tensor], Any] | tuple[Any, ...] | None"
"""A PerToken, or its `dims`; for a tuple of tables a tuple of these (None: left alone); or a
function (value, index_BK) -> the value for the kept image tokens."""


def around(subset: TokenSubset, total: int, offset: int | Tensor) -> TokenSubset:
    """The subset of a sequence of `total` tokens whose image begins at `offset`; others stay.

    offset: One number for all samples, or (B,) int64.
    """
    others, index = total - subset.length, subset.index
    if others == 0:
        return subset
    rest = torch.arange(others, device=index.device).expand(index.shape[0], -1)
    if isinstance(offset, int):
        parts = [rest[:, :offset], index + offset, rest[:, offset:] + subset.length]
        return TokenSubset(torch.cat(parts, dim=1), total)
    # Slots in the shorter sequence, and what stands there; the order of `index` stays.
    start = offset.to(index.device)[:, None]
    image = start + torch.arange(subset.n_kept, device=index.device)
    slots = torch.cat([image, torch.where(rest < start, rest, rest + subset.n_kept)], dim=1)
    held = torch.cat([index + start, torch.where(rest < start, rest, rest + subset.length)], dim=1)
    return TokenSubset(torch.empty_like(held).scatter(1, slots, held), total)


def offset_of(image: Image, others: int) -> int:
    """Where the image begins among `others` further tokens."""
    return others if image == "last" else 0


def parsed(how: How) -> How:
    """A declaration with its patterns read, so that a wrong one is found at once."""
    if isinstance(how, tuple):
        return tuple(parsed(h) for h in how)
    return PerToken(how) if isinstance(how, str) else how


def take(
    value: Any, how: How, subset: TokenSubset, batch: int, image: Image | Tensor, where: str
) -> Any:
    """The entries of an argument that belong to the kept tokens, and those of other tokens.

    Args:
        value: A tensor, or a tuple, list or dictionary of tensors.
        how: As declared.
        subset: Of the image tokens, for one sample or `batch`.
        batch: B.
        image: Where the image stands in the stream, or (B,) where it begins.
        where: The block and the argument, for messages.

    Raises:
        ValueError: The value is not what was declared, or the draw asks for more than it can give.
    """
    if how is None or value is None:
        return value
    if isinstance(how, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(how):
            raise ValueError(
                f"attach: {where} is declared as {len(how)} tables, but is "
                f"{_what(value)}; declare one for each."
            )
        parts = zip(value, how, strict=True)
        return like(value, [take(v, h, subset, batch, image, where) for v, h in parts])
    how = PerToken(how) if isinstance(how, str) else how
    if not isinstance(how, PerToken):
        return how(value, subset.index.expand(batch, -1))
    place = how.image or image
    return map_tensors(value, lambda t: _take(t, how, subset, batch, place, where))


def lengths(value: Any, how: How) -> set[int]:
    """The numbers of tokens that tables have, where it is not declared how the image stands."""
    if isinstance(how, tuple) and isinstance(value, (tuple, list)):
        return set().union(*(lengths(v, h) for v, h in zip(value, how, strict=False)))
    if not isinstance(how, PerToken) or how.image is not None:
        return set()
    found = set()
    for table in tensors(value):
        left = next((left for left, _ in how.forms if len(left) == table.dim()), ())
        found |= {table.shape[dim] for dim, name in enumerate(left) if name == "n"}
    return found


def _take(
    table: Tensor, how: PerToken, subset: TokenSubset, batch: int, image: Image | Tensor, where: str
) -> Tensor:
    forms = [form for form in how.forms if len(form[0]) == table.dim()]
    if not forms:
        raise ValueError(
            f"attach: {where} is declared as PerToken({how.dims!r}), but has shape "
            f"{tuple(table.shape)}; name its {table.dim()} dimensions."
        )
    left, right = forms[0]
    indices = {}
    for dim in [d for d, name in enumerate(left) if name == "n"]:
        if table.shape[dim] == 1:
            continue  # one entry for all tokens
        others = table.shape[dim] - subset.length
        if others < 0:
            raise ValueError(
                f"attach: {where} is declared as PerToken({how.dims!r}), but has shape "
                f"{tuple(table.shape)} for {subset.length} image tokens; name its dimensions."
            )
        offset = image if isinstance(image, Tensor) else offset_of(image, others)
        indices[dim] = around(subset, table.shape[dim], offset).index
    if all(index.shape[0] == 1 for index in indices.values()):
        for dim, index in indices.items():
            table = table.index_select(dim, index[0])
        return table
    if "b" in left:
        return _per_sample(table, indices, left.index("b"), batch, where, how)
    if right is None:
        raise ValueError(
            f"attach: {where} of shape {tuple(table.shape)} is one table for the whole batch, but "
            f"each of the {batch} samples keeps other tokens; draw one for all with "
            f"plan.draw(1, grid). If the block can take a table for each sample, declare the form "
            f"of that behind an arrow, as PerToken('{' '.join(left)} -> b {' '.join(left)}'), and "
            f"check it with routing.verify(): a wrong form may run."
        )
    moved = {dim + 1: index for dim, index in indices.items()}
    rows = _per_sample(table.expand(batch, *table.shape), moved, 0, batch, where, how)
    # The names behind the arrow in their order; `n` may stand there twice.
    places = {name: [d for d, n in enumerate(["b", *left]) if n == name] for name in right}
    rows = rows.permute([places[name].pop(0) for name in right if name != "1"])
    for dim, name in enumerate(right):
        if name == "1":
            rows = rows.unsqueeze(dim)
    return rows


def _per_sample(
    table: Tensor, indices: dict[int, Tensor], b: int, batch: int, where: str, how: PerToken
) -> Tensor:
    if table.shape[b] == 1:
        table = table.expand(*table.shape[:b], batch, *table.shape[b + 1 :])
    if table.shape[b] != batch:
        raise ValueError(
            f"attach: {where} is declared as PerToken({how.dims!r}), but has shape "
            f"{tuple(table.shape)} for a batch of {batch}; name its dimensions."
        )
    for dim, index in indices.items():
        shape = [1] * table.dim()
        shape[b], shape[dim] = index.shape
        sizes = list(table.shape)
        sizes[dim] = index.shape[1]
        rows = index.movedim(0, 1 if b > dim else 0)
        table = table.gather(dim, rows.reshape(shape).expand(sizes))
    return table


def _parsed(dims: str) -> Forms:
    """The forms of `PerToken.dims`: names before and behind the arrow."""
    forms = []
    for form in dims.split("|"):
        sides = [tuple(side.split()) for side in form.split("->")]
        left, right = sides[0], sides[1] if len(sides) == 2 else None
        named = [name for name in left if name not in ("n", "1")]
        fits = 1 <= len(sides) <= 2 and left and len(set(named)) == len(named)
        if right is not None:
            fits = fits and "n" in left
            plain = sorted(name for name in right if name != "1")
            fits = fits and "b" not in left and "1" not in left
            fits = fits and plain == sorted(["b", *left])
        if not fits or "n" not in dims.split():
            raise ValueError(
                f"PerToken({dims!r}): name the dimensions by words, `n` the tokens and `b` the "
                f"batch, as 'n d', 'b n d', 'b 1 n n' or 'n d -> b 1 n d'."
            )
        forms.append((left, right))
    return tuple(forms)


def map_tensors(value: Any, f: Callable[[Tensor], Any]) -> Any:
    """f over a tensor, or over those in tuples, lists and dictionaries; the rest as it is."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {key: map_tensors(v, f) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return like(value, [map_tensors(v, f) for v in value])
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value, and in its tuples, lists and dictionaries."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def like(sequence: Any, items: Sequence[Any]) -> Any:
    """A tuple, named tuple or list as `sequence` is, of other items."""
    return sequence._make(items) if hasattr(sequence, "_make") else type(sequence)(items)


def _what(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {len(value)}"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
