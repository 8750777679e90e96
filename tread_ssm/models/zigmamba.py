"""A plain Mamba backbone in the style of ZigMa (Hu et al., arXiv 2403.13802).

No padding tokens, no prefix, no long skips: one Mamba-1 mixer a block, adaLN-zero, and the eight
serpentine scans in turn.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, L tokens of the
stream, D channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.embed import (
    PatchEmbedding,
    TimestepEmbedding,
    as_stream,
    check_inputs,
    check_shape,
    label_embedding,
    modulate,
    unpatchify,
)
from tread_ssm.models.mixers.mamba1 import MambaMixer, check_mixer, init_mixer
from tread_ssm.routing.plan import Draw
from tread_ssm.routing.run import run_blocks
from tread_ssm.scan.order import ZIGZAGS
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class ZigMambaConfig:
    """A ZigMamba for square images (or latents).

    image_size, channels: of the input, in pixels (or latent places).
    n_classes: label n_classes means "no class"; 0: unconditional, all labels are 0.
    gap_decay, true_distance_conv: how a scan meets missing tokens, see MambaMixer.
    """

    kind: Literal["zigmamba"] = "zigmamba"
    image_size: int
    channels: int
    n_classes: int
    dim: int
    depth: int
    patch: int = 2
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    gap_decay: bool = False
    true_distance_conv: bool = False

    def __post_init__(self) -> None:
        _ = self.grid
        check_mixer("ZigMambaConfig", self.d_state, self.d_conv, self.expand)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return check_shape(
            "ZigMambaConfig",
            self.image_size,
            self.channels,
            self.n_classes,
            self.patch,
            self.dim,
            self.depth,
        )


class ZigMambaBlock(nn.Module):
    """x + gate * Mixer(RMSNorm(x) * (1 + scale) + shift), all three from a Linear of cond_BD."""

    def __init__(self, dim: int, mixer: MambaMixer) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.modulation = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, cond: Tensor, layout: Layout) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(cond)).chunk(3, dim=1)
        return x + gate[:, None] * self.mixer(modulate(self.norm(x), shift, scale), layout)


class ZigMamba(nn.Module):
    """x_BCHW, t_B, labels_B -> prediction_BCHW. Attributes: config, grid, depth, blocks."""

    def __init__(self, config: ZigMambaConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.grid, self.depth = config, config.grid, config.depth
        self.patches = PatchEmbedding(config.channels, config.patch, dim)
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], dim))
        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.blocks = nn.ModuleList(
            ZigMambaBlock(
                dim,
                MambaMixer(
                    dim,
                    self.grid,
                    ZIGZAGS[i % 8],
                    d_state=config.d_state,
                    d_conv=config.d_conv,
                    expand=config.expand,
                    gap_decay=config.gap_decay,
                    true_distance_conv=config.true_distance_conv,
                ),
            )
            for i in range(self.depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, config.patch**2 * config.channels)
        init_zigmamba(self)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        *,
        routing: Draw = (),
        checkpoint: bool = False,
    ) -> Tensor:
        """The network's prediction for a batch; arguments, result and errors as for DiM."""
        c = self.config
        shape = (c.channels, c.image_size, c.image_size)
        check_inputs("ZigMamba", shape, c.n_classes, x, t, labels, self.head.weight)
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


@torch.no_grad()
def init_zigmamba(model: ZigMamba) -> None:
    """All of ZigMamba's initial values that are not PyTorch's defaults.

    adaLN-zero: modulations and the head are zero, so that every block starts as the identity and
    the network's output as zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.blocks:
        assert isinstance(block, ZigMambaBlock)
        init_mixer(block.mixer)  # sets the step bias, which is not zero
        nn.init.zeros_(block.modulation.weight)
    nn.init.zeros_(model.head_modulation.weight)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.position)
    for weight in (
        model.label_cond.weight,
        model.t_cond.hidden.weight,
        model.t_cond.out.weight,
    ):
        nn.init.normal_(weight, std=0.02)
