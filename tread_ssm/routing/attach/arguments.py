"""What blocks that were not written for routing take and return, and one call of such a block.

Shape legend: B batch, N image tokens, K kept ones, S tokens of a stream, D channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from tread_ssm.routing.attach.per_token import (
    How,
    Image,
    around,
    lengths,
    offset_of,
    parsed,
    take,
    tensors,
)
from tread_ssm.tokens import TokenSubset, grid_text, is_whole

Streams: TypeAlias = tuple[Tensor, ...]

# Names that mean text, time or class in every library; tensors of other names are declared.
_CONDITIONS = frozenset(
    """
    encoder_hidden_states encoder_attention_mask encoder_hidden_states_mask encoder_mask context
    context_mask cond condition conditioning c class_labels labels y text txt text_emb text_mask
    pooled_projections vec temb t_emb time_emb emb t timestep timesteps embedded_timestep guidance
    adaln_input
    """.split()  # noqa: SIM905
)
# Names of sizes: how many tokens there are, and in which grid.
_SIZES = frozenset(
    """
    height width num_frames frames h w hw thw THW H W grid grid_size grid_sizes input_size
    feat_shape spatial_shape spatial_shapes x_size seq_len seqlen max_seqlen
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Blocks:
    """What the blocks of one list take and return; a row of the table of presets.

    Attributes:
        path: Where the list stands in the model, such as "transformer_blocks"; "" where the
            blocks themselves are given.
        streams: Arguments that hold the image tokens (B, S, D); (): the first one. Two where
            blocks take (hidden, residual).
        returns: Where the streams stand in a returned tuple; None where a block returns a tensor,
            or a tuple with one stream.
        per_token: Arguments besides the stream that have an entry for each token (rotary tables,
            masks, positions), see `PerToken`.
        whole: Arguments that do not go by tokens. Common names of text, time and class need not
            be named.
        skips: Arguments that get the stream behind an earlier block (long skips). One that
            crosses a route's end is taken or put, as `run_blocks` does.
        image: Whether the image's tokens stand "last" or "first" in the stream.
        present: Argument with a mask (B, S), where texts of different length stand in front of the
            image and padding behind it: the image are the last tokens that are present. Samples of
            one length may come without it.
        n_prefix: Tokens in front of the image's (behind them where it stands "first"), such as a
            class token; never dropped. A name is an attribute of the model, None any number.
        grid_arguments: Arguments that tell a block the sizes of its token grid, in their order;
            inside a route they become those of the kept rectangle.
        sequence_first: Whether streams are (S, B, D).
        closes_gaps: Whether blocks may treat the kept tokens as a sequence without gaps, although
            they hold convolutions along it or positions of their own. Right for Mamba.
        whole_between: Whether the stream holds all tokens between the blocks, inside a route too:
            for models that cut it there (HiDream) or add something for all tokens (ControlNet,
            VACE). Each block then takes its tokens and puts them back. What is added to tokens
            while they are dropped is lost.
    """

    path: str = ""
    streams: tuple[str, ...] = ()
    returns: tuple[int, ...] | None = None
    per_token: Mapping[str, How] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    image: Image = "last"
    present: str = ""
    n_prefix: int | str | None = 0
    grid_arguments: tuple[str, ...] = ()
    sequence_first: bool = False
    closes_gaps: bool = False
    whole_between: bool = False

    def __post_init__(self) -> None:
        read = {name: parsed(how) for name, how in self.per_token.items()}
        object.__setattr__(self, "per_token", read)

    @property
    def names(self) -> tuple[str, ...]:
        """All arguments that are named."""
        return (*self.streams, *self.per_token, *self.whole, *self.skips, *self.grid_arguments)


@dataclass(frozen=True)
class Call:
    """One call of a block, with its arguments by name."""

    number: int
    kind: str
    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    blocks: Blocks
    offsets: Tensor | None = None  # (B,), where each sample's image begins

    @property
    def name(self) -> str:
        """For messages."""
        return f"block {self.number} ({self.kind})"

    @property
    def values(self) -> dict[str, Any]:
        """The arguments by name, those of `args` first and in their order."""
        further = (f"argument {k + 1}" for k in range(len(self.names), len(self.args)))
        return dict(zip((*self.names, *further), self.args, strict=False)) | self.kwargs

    @property
    def stream_names(self) -> tuple[str, ...]:
        """The arguments that hold the streams."""
        return self.blocks.streams or self.names[:1] or ("argument 1",)

    def first_stream(self) -> Any:
        """What stands where the first stream is expected."""
        return self.values.get(self.stream_names[0])

    def streams(self) -> Streams:
        """The stream tensors (B, S, D), whatever order the block takes them in."""
        found, values = [], self.values
        for name in self.stream_names:
            value = values.get(name)
            if not isinstance(value, Tensor) or value.dim() != 3:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"attach: {self.name}: the stream `{name}` is {what}; expected a tensor "
                    f"(batch, tokens, channels). Blocks on 4-D maps (windows) cannot be routed; "
                    f"another argument can be named as streams=(...)."
                )
            found.append(value.transpose(0, 1) if self.blocks.sequence_first else value)
        return tuple(found)

    def others(self, present: int) -> int:
        """Tokens of the stream besides `present` ones of the image.

        Raises:
            ValueError: The stream is shorter, or `Blocks.n_prefix` is another number.
        """
        others = self.streams()[0].shape[1] - present
        if others < 0 or self.blocks.n_prefix not in (None, others):
            raise ValueError(
                f"attach: {self.name}: the stream has {others + present} tokens, but inside this "
                f"route {present} of the image and {self.blocks.n_prefix or 0} others are left; "
                f"nothing may change its length between blocks."
            )
        return others

    def begins(self, n: int) -> Tensor | None:
        """(B,), where the n image tokens of each sample begin; None: as declared for all."""
        mask = self.values.get(self.blocks.present)
        return mask.sum(dim=1) - n if isinstance(mask, Tensor) else None

    def around(self, subset: TokenSubset, others: int) -> TokenSubset:
        """The subset of the image tokens carried over to a stream with `others` besides."""
        offset = self.offsets
        place = offset_of(self.blocks.image, others) if offset is None else offset
        return around(subset, subset.length + others, place)

    def inside(self, subset: TokenSubset, enters: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for a block in a route: streams taken where it enters, tables always.

        Args:
            subset: Of the image tokens, for each sample of the batch or for one.
            enters: Whether the route starts here, so that the stream is still whole.
        """
        streams = self.streams()
        batch = streams[0].shape[0]
        others = self.others(subset.length if enters else subset.n_kept)
        new = dict(self.values)
        if enters:
            kept = self.around(for_batch(subset, batch), others)
            for name, stream in zip(self.stream_names, streams, strict=True):
                part = kept.take(stream)
                new[name] = part.transpose(0, 1) if self.blocks.sequence_first else part
        image = self.blocks.image if self.offsets is None else self.offsets
        for name, how in self.blocks.per_token.items():
            if name in new:
                where = f"{self.name}: `{name}`"
                self._refuse_longer(name, how, subset.length, others)
                new[name] = take(new[name], how, subset, batch, image, where)
        new |= self._kept_grid(subset)
        self._refuse_undeclared()
        args = tuple(new.values())[: len(self.args)]
        return args, {name: new[name] for name in self.kwargs}

    def _refuse_longer(self, name: str, how: How, n: int, others: int) -> None:
        """Raise ValueError where a table has entries for tokens that are nowhere."""
        texts = [t for v in self.values.values() for t in tensors(v) if t.dim() > 1]
        known = {1, n, n + others, *(n + others + t.shape[1] for t in texts)}
        for size in sorted(lengths(self.values[name], how)):
            if size > n and size not in known:
                raise ValueError(
                    f"attach: {self.name}: `{name}` has entries for {size} tokens, but the stream "
                    f"has {n} of the image and {others} others, and no argument has the "
                    f"rest; say where the image's entries stand, as PerToken(..., image='first') "
                    f"if the block cuts the table to the length of its stream."
                )

    def undeclared(self) -> dict[str, tuple[int, ...]]:
        """Tensors among the arguments that nothing is known of, with their shapes."""
        known = {*self.stream_names, *self.blocks.names, *_CONDITIONS}
        found: dict[str, tuple[int, ...]] = {}
        for name, value in self.values.items():
            if name not in known:
                for tensor in tensors(value):
                    if tensor.numel() > 1:
                        found[name] = tuple(tensor.shape)
        return found

    def _kept_grid(self, subset: TokenSubset) -> dict[str, int]:
        names = self.blocks.grid_arguments
        if not names:
            return {}
        told = tuple(self.values.get(name) for name in names)
        if subset.grid is None or len(subset.grid) != len(names):
            raise ValueError(
                f"attach: {self.name} is told the grid by {', '.join(names)}, but the "
                f"{subset.n_kept} kept tokens form no rectangle of that kind; choose a selection "
                f"that keeps one (Rows; for video Rows or Frames)."
            )
        if subset.full_grid is not None and told != subset.full_grid:
            raise ValueError(
                f"attach: {self.name} is told a grid of {told} by {', '.join(names)}, but the "
                f"draw is for {grid_text(subset.full_grid)}; draw with the block's grid."
            )
        return dict(zip(names, subset.grid, strict=True))

    def _refuse_undeclared(self) -> None:
        undeclared = self.undeclared()
        for name, shape in undeclared.items():
            every = ", ".join(f"{n} {s}" for n, s in undeclared.items())
            raise ValueError(
                f"attach: {self.name}: argument `{name}` has shape {shape}, and whether it goes by "
                f"tokens is not declared. Name its dimensions as per_token={{{name!r}: "
                f"PerToken('n d')}} if it does, and write whole=({name!r},) if not; a long skip "
                f"from an earlier block is named as skips=({name!r},). Not declared: {every}."
            )
        known = {*self.blocks.names, *self.stream_names}
        for name, value in self.values.items():
            if name in known:
                continue
            several = isinstance(value, (tuple, list)) and all(is_whole(v) for v in value)
            if name in _SIZES and (is_whole(value) or several):
                raise ValueError(
                    f"attach: {self.name} is told a size of the token grid, `{name}`={value}, "
                    f"which changes inside a route; name the sizes as grid_arguments=(...), or "
                    f"whole=({name!r},) if it may stay."
                )
            if isinstance(value, nn.Module):
                raise ValueError(
                    f"attach: {self.name}: `{name}` is a module ({type(value).__name__}), which "
                    f"may make positions of all tokens. Declare per_token={{{name!r}: lambda "
                    f"module, index: ...}}, which gives one for the kept tokens, index (batch, "
                    f"kept), or whole=({name!r},) if it does not look at where tokens stand."
                )
            if type(value).__name__ == "BlockMask":
                raise ValueError(
                    f"attach: {self.name}: `{name}` is a BlockMask over all tokens; declare "
                    f"per_token={{{name!r}: lambda mask, index: ...}}, which makes that of the "
                    f"kept ones."
                )


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


def for_batch(subset: TokenSubset, batch: int) -> TokenSubset:
    """The subset with a row for each of `batch` samples."""
    return TokenSubset(subset.index.expand(batch, -1), subset.length, subset.grid, subset.full_grid)
