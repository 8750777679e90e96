"""DiT, the transformer backbone of Peebles and Xie, arXiv 2212.09748, and today's additions to it.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, L tokens of the
stream, D channels of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.backbone import Backbone, BackboneConfig, init_embeddings, zero_biases
from tread_ssm.models.embed import Head, TimestepEmbedding, label_embedding, modulate
from tread_ssm.models.mixers.attention import Attention
from tread_ssm.routing.fuse import Change
from tread_ssm.tokens import Layout, TokenSubset


@dataclass(frozen=True, kw_only=True)
class DiTConfig(BackboneConfig):
    """A DiT for square images (or latents); further fields as in BackboneConfig.

    Attributes:
        heads: Attention heads; each takes dim / heads channels.
        mlp_ratio: Hidden channels of the MLP, in multiples of dim.
        out_channels: Channels of the prediction; None: as many as `channels`. The published
            networks learn a variance beside the noise and have twice as many.
        norm: "layer", as published, or "rms": RMSNorm in its place; both without a weight.
        mlp: "gelu", as published, or "swiglu" (arXiv 2002.05202), which gates mlp_ratio * dim * 2/3
            hidden channels and so has as many parameters.
        qk_norm: RMSNorm with a weight on queries and keys (arXiv 2302.05442).
        rope: Queries and keys turn by the row and the column of their token, beside the position
            embedding at the input (arXiv 2403.13298); needs heads of a multiple of 4 channels.
        value_residual: Every block mixes its values with values of the embedded tokens, which all
            blocks share (arXiv 2410.17897).
    """

    kind: Literal["dit"] = "dit"
    heads: int
    mlp_ratio: float = 4.0
    out_channels: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    qk_norm: bool = False
    rope: bool = False
    value_residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(
                f"DiTConfig: dim {self.dim} is not a multiple of heads {self.heads}; each head "
                f"takes dim / heads channels."
            )
        if self.dim % 4:
            raise ValueError(
                f"DiTConfig: dim is {self.dim}; the 2-D position embedding needs a multiple of 4."
            )
        if not 1 <= self.mlp_ratio * self.dim < math.inf:
            raise ValueError(
                f"DiTConfig: mlp_ratio is {self.mlp_ratio}; mlp_ratio * dim must be a finite "
                f"number of channels, at least 1."
            )
        if self.out_channels is not None and self.out_channels < 1:
            raise ValueError(
                f"DiTConfig: out_channels is {self.out_channels}; use at least 1, or None for "
                f"channels."
            )
        for name, choices in (("norm", ("layer", "rms")), ("mlp", ("gelu", "swiglu"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"DiTConfig: {name} is {getattr(self, name)!r}; use {' or '.join(choices)}."
                )
        if self.rope and self.dim // self.heads % 4:
            raise ValueError(
                f"DiTConfig: rope turns pairs of channels by row and column, which needs heads of "
                f"a multiple of 4 channels; dim {self.dim} / heads {self.heads} is "
                f"{self.dim // self.heads}."
            )

    @property
    def as_published(self) -> bool:
        """Whether the network is the published one, whatever its size."""
        added = self.qk_norm or self.rope or self.value_residual
        return self.norm == "layer" and self.mlp == "gelu" and not added

    def build(self) -> DiT:
        """The freshly initialised model, on the current default device."""
        return DiT(self)


class Conditioning(NamedTuple):
    """What all blocks are told.

    Attributes:
        vector: (B, D), the sum of what t and the label say.
        values: (B, N, D), values of all image tokens, whichever are present; None without a value
            residual.
    """

    vector: Tensor
    values: Tensor | None


class DiTBlock(nn.Module):
    """Attention, then an MLP, each as x + gate * f(norm(x) * (1 + scale) + shift).

    The six vectors of the modulation come from a Linear of SiLU(cond.vector): adaLN-zero. Positions
    are in the tokens.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = plain_norm(config)
        self.attention = Attention(
            dim,
            config.heads,
            qk_norm=config.qk_norm,
            rope=config.rope,
            value_residual=config.value_residual,
        )
        self.norm2 = plain_norm(config)
        self.mlp = mlp(config)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, cond: Conditioning, layout: Layout) -> Tensor:
        modulation = self.modulation(F.silu(cond.vector))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=1)
        first = None if cond.values is None else present(cond.values, layout)
        y = self.attention(modulate(self.norm1(x), shift1, scale1), layout, first)
        x = x + gate1[:, None] * y
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


def plain_norm(config: DiTConfig) -> nn.Module:
    """A norm over D channels without a weight, which the modulation brings."""
    if config.norm == "rms":
        return nn.RMSNorm(config.dim, elementwise_affine=False, eps=1e-6)
    return nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)


def mlp(config: DiTConfig) -> nn.Module:
    """x_BLD -> x_BLD, token by token."""
    from timm.layers import GELUTanh, Mlp, SwiGLU  # here: the Mamba backbones need no timm

    hidden = config.dim * config.mlp_ratio
    if config.mlp == "swiglu":
        return SwiGLU(config.dim, max(1, int(hidden * 2 / 3)))
    return Mlp(config.dim, int(hidden), act_layer=GELUTanh)


def present(x: Tensor, layout: Layout) -> Tensor:
    """Of x_BND of all image tokens, those that the stream of `layout` holds."""
    if layout.index is None:
        return x
    return TokenSubset(layout.index, x.shape[1]).take(x)


class DiT(Backbone):
    """x_BCHW, t_B, labels_B -> prediction, (B, out_channels or C, H, W); see Backbone."""

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.register_tables()
        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(self.depth))
        out_channels = config.channels if config.out_channels is None else config.out_channels
        self.head = Head(plain_norm(config), dim, config.patch, out_channels)
        self.values: nn.Module | None = None
        if config.value_residual:
            self.values = nn.Sequential(plain_norm(config), nn.Linear(dim, dim))
        self.init_weights()

    def embed(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Conditioning, Tensor]:
        """As `Backbone.embed`; the blocks are conditioned on a `Conditioning`."""
        stream, cond, head_cond = super().embed(x, t, labels)
        values = None if self.values is None else self.values(stream)
        return stream, Conditioning(cond, values), head_cond

    def tables(self) -> dict[str, Tensor]:
        """Buffers that the configuration determines and no state dict holds, by name."""
        return {"position": sincos_2d(self.grid, self.config.dim)}

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set all initial values.

        adaLN-zero: modulations and the head are zero, so that every block starts as the identity
        and the network's output as zero. They are zeroed last, after all other Linears have their
        values.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and not isinstance(module, Change):
                nn.init.xavier_uniform_(module.weight)
        zero_biases(self)
        nn.init.xavier_uniform_(self.patches.projection.weight.flatten(1))  # a view: in place
        assert self.patches.projection.bias is not None
        nn.init.zeros_(self.patches.projection.bias)
        init_embeddings((self.label_cond.weight, self.t_cond.hidden.weight, self.t_cond.out.weight))
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            nn.init.zeros_(block.modulation.weight)
        self.head.init_to_zero()


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """(N, dim): half the channels tell the column, half the row, each as sines then cosines of
    angular frequencies 1 down to about 1e-4. Made in float64, so that the rounded numbers are
    those of the published weights."""
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, dtype=torch.float64) * (-math.log(1e4) / quarter))
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    column_angle = columns.repeat(grid[0])[:, None] * frequency
    row_angle = rows.repeat_interleave(grid[1])[:, None] * frequency
    parts = [column_angle.sin(), column_angle.cos(), row_angle.sin(), row_angle.cos()]
    return torch.cat(parts, dim=1).to(torch.get_default_dtype())
