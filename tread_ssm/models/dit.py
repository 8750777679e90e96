"""DiT, the transformer backbone of Peebles and Xie, arXiv 2212.09748.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, L tokens of the
stream, D channels of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.backbone import Backbone, BackboneConfig, init_embeddings, zero_biases
from tread_ssm.models.embed import Head, TimestepEmbedding, label_embedding, modulate
from tread_ssm.models.mixers.attention import Attention
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class DiTConfig(BackboneConfig):
    """A DiT for square images (or latents); further fields as in BackboneConfig.

    Attributes:
        heads: attention heads; each takes dim / heads channels.
        mlp_ratio: hidden channels of the MLP, in multiples of dim.
        out_channels: channels of the prediction; None: as many as `channels`. The published
            networks learn a variance beside the noise and have twice as many.
    """

    kind: Literal["dit"] = "dit"
    heads: int
    mlp_ratio: float = 4.0
    out_channels: int | None = None

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

    def build(self) -> DiT:
        """The freshly initialised model, on the current default device."""
        return DiT(self)


class DiTBlock(nn.Module):
    """Attention, then an MLP, each as x + gate * f(LayerNorm(x) * (1 + scale) + shift).

    The six vectors of the modulation come from a Linear of SiLU(cond_BD): adaLN-zero. Positions
    are in the tokens.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        from timm.layers import GELUTanh, Mlp  # here, so that the Mamba backbones need no timm

        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x: Tensor, cond: Tensor, layout: Layout) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(cond)).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), layout)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(Backbone):
    """x_BCHW, t_B, labels_B -> prediction, (B, out_channels or C, H, W); see Backbone."""

    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.register_tables()
        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, config.heads, config.mlp_ratio) for _ in range(self.depth)
        )
        out_channels = config.channels if config.out_channels is None else config.out_channels
        norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.head = Head(norm, dim, config.patch, out_channels)
        self.init_weights()

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
            if isinstance(module, nn.Linear):
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
