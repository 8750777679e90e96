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

from tread_ssm.models.embed import (
    PatchEmbedding,
    TimestepEmbedding,
    WithTables,
    as_stream,
    check_inputs,
    check_shape,
    label_embedding,
    modulate,
    unpatchify,
)
from tread_ssm.models.mixers.attention import DiTBlock
from tread_ssm.routing.plan import Draw
from tread_ssm.routing.run import run_blocks
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A DiT for square images (or latents).

    image_size, channels: of the input, in pixels (or latent places).
    n_classes:    label n_classes means "no class"; 0: unconditional, all labels are 0.
    out_channels: of the prediction; None: as many as `channels`. The published networks learn a
                  variance beside the noise and have twice as many.
    """

    kind: Literal["dit"] = "dit"
    image_size: int
    channels: int
    n_classes: int
    dim: int
    depth: int
    heads: int
    patch: int = 2
    mlp_ratio: float = 4.0
    out_channels: int | None = None

    def __post_init__(self) -> None:
        _ = self.grid
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(
                f"DiTConfig: dim {self.dim} is not a multiple of heads {self.heads}; each head "
                f"takes dim / heads channels."
            )
        if self.dim % 4:
            raise ValueError(
                f"DiTConfig: dim is {self.dim}; the 2-D position embedding needs a multiple of 4."
            )
        if self.out_channels is not None and self.out_channels < 1:
            raise ValueError(
                f"DiTConfig: out_channels is {self.out_channels}; use at least 1, or None for "
                f"channels."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return check_shape(
            "DiTConfig",
            self.image_size,
            self.channels,
            self.n_classes,
            self.patch,
            self.dim,
            self.depth,
        )


class DiT(WithTables):
    """x_BCHW, t_B, labels_B -> prediction. Attributes: config, grid, depth, blocks."""

    position: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.grid, self.depth = config, config.grid, config.depth
        self.patches = PatchEmbedding(config.channels, config.patch, dim)
        self.register_tables()
        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, config.heads, config.mlp_ratio) for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.head_modulation = nn.Linear(dim, 2 * dim)
        out_channels = config.channels if config.out_channels is None else config.out_channels
        self.head = nn.Linear(dim, config.patch**2 * out_channels)
        init_dit(self)

    def tables(self) -> dict[str, Tensor]:
        return {"position": sincos_2d(self.grid, self.config.dim)}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        *,
        routing: Draw = (),
        checkpoint: bool = False,
    ) -> Tensor:
        """The prediction, (B, out_channels or C, H, W); arguments and errors as for DiM."""
        c = self.config
        shape = (c.channels, c.image_size, c.image_size)
        check_inputs("DiT", shape, c.n_classes, x, t, labels, self.head.weight)
        cond = self.t_cond(t) + self.label_cond(labels)
        stream = run_blocks(
            tuple(self.blocks),
            as_stream(self.patches(x) + self.position),
            cond,
            Layout(self.grid),
            routing,
            checkpoint=checkpoint,
        )
        shift, scale = self.head_modulation(F.silu(cond)).chunk(2, dim=1)
        out = self.head(modulate(self.norm(stream), shift, scale))
        return as_stream(unpatchify(out, self.grid, c.patch))


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


@torch.no_grad()
def init_dit(model: DiT) -> None:
    """All of DiT's initial values.

    adaLN-zero: modulations and the head are zero, so that every block starts as the identity and
    the network's output as zero. They are zeroed last, after all other Linears have their values.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patches.projection.weight.flatten(1))  # a view: in place
    assert model.patches.projection.bias is not None
    nn.init.zeros_(model.patches.projection.bias)
    for weight in (
        model.label_cond.weight,
        model.t_cond.hidden.weight,
        model.t_cond.out.weight,
    ):
        nn.init.normal_(weight, std=0.02)
    for block in model.blocks:
        assert isinstance(block, DiTBlock)
        nn.init.zeros_(block.modulation.weight)
    nn.init.zeros_(model.head_modulation.weight)
    nn.init.zeros_(model.head.weight)
