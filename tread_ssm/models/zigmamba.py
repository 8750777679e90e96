"""A plain Mamba backbone in the style of ZigMa (Hu et al., arXiv 2403.13802).

No padding tokens, no prefix, no long skips: one mixer a block, adaLN-zero, and the eight
serpentine scans in turn. Blocks add their normalised input to the stream, as in ZigMa's code.

Shape legend: B batch, N image tokens, L tokens of the stream, D channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.models.backbone import Backbone, MixedConfig, init_embeddings, zero_biases
from tread_ssm.models.embed import Head, TimestepEmbedding, label_embedding, modulate
from tread_ssm.models.mixers import Mamba1Config, Mixer, MixerConfig
from tread_ssm.scan.order import ZIGZAGS
from tread_ssm.tokens import Layout


@dataclass(frozen=True, kw_only=True)
class ZigMambaConfig(MixedConfig):
    """A ZigMamba for square images (or latents); further fields as in MixedConfig.

    Attributes:
        kind: Always "zigmamba".
        mixer: What each block mixes its tokens with.
    """

    kind: Literal["zigmamba"] = "zigmamba"
    mixer: MixerConfig = field(default_factory=lambda: Mamba1Config(d_conv=4))

    def build(self) -> ZigMamba:
        """The freshly initialised model, on the current default device."""
        return ZigMamba(self)


class ZigMambaBlock(nn.Module):
    """x + y + gate * Mixer(y * (1 + scale) + shift) with y = RMSNorm(x).

    The three vectors come from a Linear of SiLU(cond_BD).
    """

    def __init__(self, dim: int, mixer: Mixer) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.modulation = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, cond: Tensor, layout: Layout) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(cond)).chunk(3, dim=1)
        y = self.norm(x)
        return x + (y + gate[:, None] * self.mixer(modulate(y, shift, scale), layout))


class ZigMamba(Backbone):
    """x_BCHW, t_B, labels_B -> prediction_BCHW; see Backbone."""

    config: ZigMambaConfig
    orders = ZIGZAGS

    def __init__(self, config: ZigMambaConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.register_tables()
        self.position = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], dim))
        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.shared = config.build_shared()
        self.blocks = nn.ModuleList(
            ZigMambaBlock(dim, config.build_mixer(i, ZIGZAGS[i % 8], self.shared))
            for i in range(self.depth)
        )
        norm = nn.Sequential(
            nn.RMSNorm(dim, eps=1e-5), nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        )
        self.head = Head(norm, dim, config.patch, config.channels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set all initial values that are not PyTorch's defaults.

        adaLN-zero: modulations and the head are zero, so that every block starts as
        x + RMSNorm(x) and the network's output as zero.
        """
        zero_biases(self)
        for block in self.blocks:
            assert isinstance(block, ZigMambaBlock)
            block.mixer.init_weights()  # may set biases that are not zero
            nn.init.zeros_(block.modulation.weight)
        self.head.init_to_zero()
        nn.init.zeros_(self.position)
        init_embeddings((self.label_cond.weight, self.t_cond.hidden.weight, self.t_cond.out.weight))
