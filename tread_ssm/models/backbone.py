"""What all backbones share: their six sizes, their checks, embed -> run_blocks -> head.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, L tokens of the
stream, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tread_ssm.models.embed import (
    Head,
    PatchEmbedding,
    TimestepEmbedding,
    as_stream,
)
from tread_ssm.models.mixers import AttentionConfig, Mixer, MixerConfig, SharedMixer
from tread_ssm.routing.fuse import Fuse, Span, resolved
from tread_ssm.routing.plan import Draw, kept_in
from tread_ssm.routing.run import run_blocks
from tread_ssm.scan.order import OrderName, rank_table
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What every backbone is told: its images, its classes and its size.

    Attributes:
        kind: Name of the backbone.
        image_size: Side of the square images, in pixels (or in places of latents).
        channels: Channels of the images (or latents).
        n_classes: Number of classes. Label n_classes means "no class"; 0: unconditional, all
            labels are 0.
        dim: Channels of a token, even.
        depth: Number of blocks.
        patch: Side of the square of pixels that becomes a token; it divides image_size.
        fuse: Blocks [start, stop) whose start and end a learned map merges, for routes with rejoin
            "fuse" (see `Fuse`); negative numbers count from the end. A run adds those of its
            routes by itself.

    Raises:
        ValueError: A size that is not possible.
    """

    kind: str
    image_size: int
    channels: int
    n_classes: int
    dim: int
    depth: int
    patch: int = 2
    fuse: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        name, least = type(self).__name__, {"n_classes": 0, "dim": 2}
        for size in ("image_size", "channels", "n_classes", "patch", "depth", "dim"):
            value = getattr(self, size)
            if not isinstance(value, int) or value < least.get(size, 1):
                raise ValueError(
                    f"{name}: {size} is {value}; it must be at least {least.get(size, 1)}, and "
                    f"a whole number."
                )
        if self.image_size % self.patch:
            raise ValueError(
                f"{name}: image_size {self.image_size} is not a multiple of patch {self.patch}; "
                f"use {self.image_size // self.patch * self.patch or self.patch} or another patch."
            )
        if self.dim % 2:
            raise ValueError(f"{name}: dim is {self.dim}; the sinusoids need an even number.")
        try:
            object.__setattr__(self, "fuse", resolved(self.fuse, self.depth))
        except ValueError as error:
            raise ValueError(f"{name}: fuse: {error}") from None

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return (self.image_size // self.patch,) * 2

    def build(self) -> Backbone:
        """The freshly initialised model, on the current default device."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MixedConfig(BackboneConfig):
    """A backbone whose blocks are built around any mixer; further fields as in BackboneConfig.

    Attributes:
        mixer: What blocks move information between tokens with.
        attention_every: Every so many blocks, one has `attention` in place of the mixer: 4 makes
            a hybrid of blocks 3, 7, 11 ...; 0: none.
        attention: The attention of these blocks.
        attention_shared: One attention, with the same weights, for all of these blocks, as in
            DiMSUM (arXiv 2411.04168). Their norms, modulations and long skips stay their own.
    """

    mixer: MixerConfig
    attention_every: int = 0
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    attention_shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixer.check(self.dim)
        if self.attention_every < 0:
            raise ValueError(
                f"{type(self).__name__}: attention_every is {self.attention_every}; it must be at "
                f"least 0."
            )
        if self.attention_every:
            self.attention.check(self.dim)
        elif self.attention_shared:
            raise ValueError(
                f"{type(self).__name__}: attention_shared is true, but attention_every is 0: no "
                f"block has attention; set attention_every."
            )

    def attends(self, block: int) -> bool:
        """Whether a block has attention in place of the mixer."""
        return bool(self.attention_every) and (block + 1) % self.attention_every == 0

    def build_shared(self) -> Mixer | None:
        """The attention of all blocks that attend; None where each has its own."""
        shared = self.attention_shared and self.depth >= self.attention_every
        return self.attention.build(self.dim, "raster") if shared else None

    def build_mixer(self, block: int, order: OrderName, shared: Mixer | None = None) -> Mixer:
        """The mixer of a block, which scans along `order` unless it is attention.

        Args:
            block: Its number.
            order: Its scan order.
            shared: What build_shared made.
        """
        if not self.attends(block):
            return self.mixer.build(self.dim, order)
        return self.attention.build(self.dim, order) if shared is None else SharedMixer(shared)


class Backbone(nn.Module):
    """x_BCHW, t_B, labels_B -> prediction_BCHW: embed -> run_blocks -> head.

    A backbone makes its modules in its own __init__, in the order in which their random
    initial values are sampled, and overrides what differs: `tables`, `embed`, `image_tokens`,
    `crop`, `on_stream`.

    Attributes:
        config: The BackboneConfig that it was built from.
        grid: (rows, columns) of the image tokens.
        stream_grid: (rows, columns) of the stream's grid; larger where there is padding.
        n_prefix: Tokens in front of that grid, never routed.
        depth: Number of blocks.
        orders: The scan orders that its blocks ask for.
        skips: (source, target) blocks of long skips, as in run_blocks.
        blocks: The stack that run_blocks runs.
        fuse: The maps of `config.fuse`, by "start-stop".
    """

    stream_grid: tuple[int, int]
    n_prefix = 0
    orders: tuple[OrderName, ...] = ()
    skips: tuple[tuple[int, int], ...] = ()
    blocks: nn.ModuleList
    t_cond: TimestepEmbedding
    label_cond: nn.Embedding
    position: Tensor
    head: Head

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config, self.grid, self.depth = config, config.grid, config.depth
        self.stream_grid = self.grid
        self.patches = PatchEmbedding(config.channels, config.patch, config.dim)
        self.fuse = nn.ModuleDict({f"{a}-{b}": Fuse(config.dim) for a, b in config.fuse})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        *,
        routing: Draw = (),
        checkpoint: bool = False,
        taps: Sequence[int] = (),
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """The network's prediction for a batch.

        Args:
            x: (B, C, H, W) floating point.
            t: (B,) floating point, of the order of 0..1000 (see embed.sinusoid).
            labels: (B,) int64 in 0..n_classes; n_classes stands for "no class".
            routing: A draw over `grid`, from RoutePlan.draw; () runs the dense network.
            checkpoint: Recompute the blocks' activations in the backward pass.
            taps: Numbers of blocks, from 0, whose output is wanted as well.

        Returns:
            (B, C, H, W) in float32 (float64 for a float64 model), also under autocast; DiT may
            have other channels. With `taps`: that, and for each of these blocks the image tokens
            (B, K, D) that it has put out; K are those that a route around the block keeps, see
            `kept_in`.

        Raises:
            ValueError: Shapes, labels or a draw that do not fit.
            TypeError: Dtypes that do not fit.
        """
        self._check(x, t, labels)
        stream, cond, head_cond = self.embed(x, t, labels)
        layout = Layout(self.stream_grid, n_prefix=self.n_prefix, orders=self._ranks())
        out: Any = run_blocks(
            tuple(self.blocks),
            stream,
            cond,
            layout,
            self.on_stream(routing),
            skips=self.skips,
            rejoins={(a, b): self.fuse[f"{a}-{b}"] for a, b in self.config.fuse},
            checkpoint=checkpoint,
            taps=taps,
        )
        if not taps:
            return self.head(self.crop(out), head_cond, self.grid)
        stream, streams = out
        features = [self.image_tokens(s) for s in streams]
        kept = [kept_in(routing, block) for block in taps]
        seen = (f if k is None else k.take(f) for f, k in zip(features, kept, strict=True))
        return self.head(self.crop(stream), head_cond, self.grid), tuple(seen)

    def embed(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Tokens and conditioning.

        Args:
            x: (B, C, H, W), noisy samples.
            t: (B,), time or noise level.
            labels: (B,) int64, classes.

        Returns:
            The stream (B, L, D), what conditions the blocks, and what conditions the head, (B, D).
        """
        cond = self.t_cond(t) + self.label_cond(labels)
        return as_stream(self.patches(x) + self.position), cond, cond

    def image_tokens(self, stream: Tensor) -> Tensor:
        """The image tokens x_BND among those of a stream x_BLD."""
        return stream

    def crop(self, stream: Tensor) -> Tensor:
        """What the head gets, x_BND, of the stream x_BLD that left the last block."""
        return self.image_tokens(stream)

    def on_stream(self, routing: Draw) -> Draw:
        """A draw over the image tokens as one over the stream's grid."""
        return routing

    # Tables -------------------------------------------------------------------------------------

    def tables(self) -> dict[str, Tensor]:
        """Buffers that the configuration determines and no state dict holds, by name."""
        return {f"rank_{o}": rank_table(o, self.stream_grid) for o in self.orders if o != "raster"}

    def register_tables(self) -> None:
        """Add the tables to the module, on the default device."""
        for name, table in self.tables().items():
            self.register_buffer(name, table, persistent=False)

    def _ranks(self) -> dict[str, Tensor]:
        return {o: getattr(self, f"rank_{o}") for o in self.orders if o != "raster"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        # Tables are made anew, so that a model that was built on the meta device and then given
        # memory (`to_empty`, sharded loading) does not compute with rubbish.
        super()._apply(fn, recurse)
        with torch.device("cpu"):
            for name, table in self.tables().items():
                setattr(self, name, table.to(getattr(self, name)))  # its device and dtype
        return self

    # Checks -------------------------------------------------------------------------------------

    def _check(self, x: Tensor, t: Tensor, labels: Tensor) -> None:
        """Refuse a batch that does not fit. Values are looked at where that is free (eager, on
        the CPU), so that nothing waits for a device."""
        c, name = self.config, type(self.config).__name__.removesuffix("Config")
        shape = (c.channels, c.image_size, c.image_size)
        if x.dim() != 4 or tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"{name}: x has shape {tuple(x.shape)}, expected (batch, {shape[0]}, {shape[1]}, "
                f"{shape[2]}); image_size and channels are set in the model's config."
            )
        if x.shape[0] == 0:
            raise ValueError(f"{name}: the batch is empty; pass at least one sample.")
        for argument, tensor in (("t", t), ("labels", labels)):
            if tuple(tensor.shape) != (x.shape[0],):
                raise ValueError(
                    f"{name}: {argument} has shape {tuple(tensor.shape)}, expected "
                    f"({x.shape[0]},): one value per sample."
                )
        for argument, tensor in (("x", x), ("t", t)):
            if not tensor.is_floating_point():
                raise TypeError(
                    f"{name}: {argument} is {tensor.dtype}; pass a floating-point tensor."
                )
        _check_precision(name, x, self.head.linear.weight.dtype)
        if labels.dtype != torch.int64:
            raise TypeError(
                f"{name}: labels are {labels.dtype}; pass class numbers as torch.int64."
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > c.n_classes:
                raise ValueError(
                    f"{name}: labels run from {low} to {high}, but there are {c.n_classes} "
                    f"classes; use 0..{c.n_classes}, where {c.n_classes} stands for no class."
                )


def _check_precision(name: str, x: Tensor, weights: torch.dtype) -> None:
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return
    if weights in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name}: its weights are {weights}, but its stream is float32; run it under "
            f'torch.autocast("{device}", {weights}), which needs no weights in half precision.'
        )
    if x.dtype != weights:
        raise TypeError(f"{name}: x is {x.dtype}, its weights are {weights}; pass x.to({weights}).")


# Initial values -----------------------------------------------------------------------------------


def zero_biases(model: nn.Module) -> None:
    """Set the biases of all linear layers to zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def init_embeddings(tables: Iterable[Tensor | None]) -> None:
    """Fill embeddings from a normal distribution of standard deviation 0.02."""
    for weight in tables:
        if weight is not None:
            nn.init.normal_(weight, std=0.02)
