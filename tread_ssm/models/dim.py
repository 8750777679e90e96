"""DiM, the Mamba diffusion backbone of Teng et al., arXiv 2405.14224.

(Mo and Tian, arXiv 2405.15881, call another network by the same name.)

Shape legend: B batch, N image tokens, M tokens of the padded grid, L = 2 + pads + M tokens of the
stream, D channels of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tread_ssm.models.backbone import Backbone, MixedConfig, init_embeddings, zero_biases
from tread_ssm.models.embed import (
    Head,
    TimestepEmbedding,
    as_stream,
    label_embedding,
    sinusoid,
)
from tread_ssm.models.mixers import Mamba1Config, Mixer, MixerConfig
from tread_ssm.routing.plan import Draw
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout, TokenSubset

CYCLE: tuple[OrderName, ...] = ("raster", "raster_reversed", "column", "column_reversed")


@dataclass(frozen=True, kw_only=True)
class DiMConfig(MixedConfig):
    """A DiM for square images (or latents); further fields as in MixedConfig and
    BackboneConfig.

    depth is odd and at least 3: one block in the middle, pairs with a long skip around it.

    Attributes:
        pads: Learned tokens that end every row, stand below the grid and separate it from the
            prefix: 3 as published, 1, or 0 for none.
        pads_in_route: "kept": padding tokens stay in every block. "routed": they skip a route's
            blocks like dropped image tokens.
    """

    kind: Literal["dim"] = "dim"
    mixer: MixerConfig = field(default_factory=Mamba1Config)
    pads: int = 3
    pads_in_route: Literal["kept", "routed"] = "kept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 3 or self.depth % 2 == 0:
            raise ValueError(
                f"DiMConfig: depth is {self.depth}; it must be odd and at least 3, because long "
                f"skips pair the blocks around the middle one."
            )
        if self.pads not in (0, 1, 3):
            raise ValueError(f"DiMConfig: pads is {self.pads}; use 3, 1 or 0.")
        if self.pads_in_route not in ("kept", "routed"):
            raise ValueError(
                f"DiMConfig: pads_in_route is {self.pads_in_route!r}; use 'kept' or 'routed'."
            )
        if self.pads == 0 and self.pads_in_route == "routed":
            raise ValueError(
                "DiMConfig: pads_in_route is 'routed', but pads is 0, so there is nothing to "
                "route; leave it at 'kept', or set pads to 1 or 3."
            )

    def build(self) -> DiM:
        """The freshly initialised model, on the current default device."""
        return DiM(self)


def scan_orders(depth: int) -> tuple[OrderName, ...]:
    """Each block's order: rows and columns, forward and backward, in turn up to the middle block,
    then mirrored, so that block i and block depth - 1 - i scan alike."""
    return tuple(CYCLE[min(i, depth - 1 - i) % 4] for i in range(depth))


class LongSkip(nn.Module):
    """Merges a block's input x_BLD with an earlier stream skip_BLD into a new x_BLD.

    One map of the concatenation up to 512 channels, a sum of two maps above.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.joint = nn.Linear(2 * dim, dim) if dim <= 512 else None
        self.apart = None if dim <= 512 else nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.joint is not None:
            return self.joint(torch.cat([x, skip], dim=-1)).to(x.dtype)
        assert self.apart is not None
        return self.apart[0](x).to(x.dtype) + self.apart[1](skip)


class DiMBlock(nn.Module):
    """x + (1 + gate) * Mixer(RMSNorm(x) * (1 + scale) + shift) for all tokens of the stream.

    Modulation is adaLN-single: cond_B3D (shift, scale, gate), shared by all blocks, plus this
    block's own table. The residual stream keeps its dtype under autocast.
    """

    def __init__(self, dim: int, mixer: Mixer, *, has_skip: bool) -> None:
        super().__init__()
        self.skip = LongSkip(dim) if has_skip else None
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.table = nn.Parameter(torch.empty(3, dim))

    def forward(
        self, x: Tensor, cond: Tensor, layout: Layout, skip: Tensor | None = None
    ) -> Tensor:
        if (self.skip is None) != (skip is None):
            raise ValueError(
                "DiMBlock: a block with a long skip needs the skipped stream, one without takes "
                "none; run the blocks with run_blocks(..., skips=model.skips)."
            )
        if self.skip is not None:
            x = self.skip(x, skip)
        shift, scale, gate = (cond + self.table)[:, :, None].unbind(1)
        return x + (1 + gate) * self.mixer(self.norm(x) * (1 + scale) + shift, layout)


class DiM(Backbone):
    """Diffusion Mamba: x_BCHW, t_B, labels_B -> prediction_BCHW; see Backbone.

    The stream is [t, label, separators, padded grid]; the prefix (all before the grid) comes
    first in every scan and is never routed.
    """

    config: DiMConfig
    orders = CYCLE
    positions: Tensor
    pad_positions: Tensor

    def __init__(self, config: DiMConfig) -> None:
        super().__init__(config)
        dim, pads = config.dim, config.pads
        self.stream_grid = (self.grid[0] + pads, self.grid[1] + pads)
        self.n_prefix = 2 + pads
        # The stream behind block i feeds block depth - i, last in first out; block 0 has no part.
        self.skips = tuple((i, self.depth - i) for i in range(1, (self.depth + 1) // 2))
        self.register_tables()

        self.label_token = label_embedding(config.n_classes, dim)
        self.position = nn.Parameter(torch.empty(2 + self.grid[0] * self.grid[1], dim))
        self.conv_in = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.pads = nn.Parameter(torch.empty(pads, dim)) if pads else None
        self.separators = nn.Parameter(torch.empty(pads, dim)) if pads else None

        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        ends = {target for _, target in self.skips}
        self.shared = config.build_shared()
        self.blocks = nn.ModuleList(
            DiMBlock(dim, config.build_mixer(i, order, self.shared), has_skip=i in ends)
            for i, order in enumerate(scan_orders(self.depth))
        )
        self.conv_out = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.head = Head(nn.RMSNorm(dim, eps=1e-5), dim, config.patch, config.channels)
        self.init_weights()

    def tables(self) -> dict[str, Tensor]:
        """Buffers that the configuration determines and no state dict holds, by name."""
        pads = self.config.pads
        return {
            **super().tables(),
            "positions": _image_positions(self.grid, pads),
            "pad_positions": _pad_positions(self.grid, pads),
        }

    def embed(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backbone.embed`; the blocks are conditioned on (B, 3, D)."""
        dim = self.config.dim
        t_token, label_token = sinusoid(t, dim), self.label_token(labels)
        cond = self.modulation(F.silu(self.t_cond(t) + self.label_cond(labels)))
        head_cond = (t_token + label_token).to(self.modulation.weight.dtype)
        return self._stream(x, t_token, label_token), cond.unflatten(1, (3, dim)), head_cond

    def image_tokens(self, stream: Tensor) -> Tensor:
        """The image tokens x_BND among those of a stream x_BLD."""
        image = stream[:, self.n_prefix :].unflatten(1, self.stream_grid)
        return image[:, : self.grid[0], : self.grid[1]].flatten(1, 2)

    def crop(self, stream: Tensor) -> Tensor:
        """The image tokens x_BND of the stream x_BLD that left the last block, convolved."""
        return self._convolve(self.conv_out, self.image_tokens(stream))

    def on_stream(self, routing: Draw) -> Draw:
        """A draw over the image tokens as one over the padded grid."""
        pads = self.pad_positions
        if self.config.pads_in_route == "routed":
            pads = pads[:0]
        return tuple((route, self._on_padded_grid(subset, pads)) for route, subset in routing)

    def _stream(self, x: Tensor, t_token: Tensor, label_token: Tensor) -> Tensor:
        position = as_stream(self.position)
        prefix = torch.stack([t_token, label_token], dim=1).to(position.dtype) + position[:2]
        tokens = self._convolve(self.conv_in, self.patches(x) + position[2:])
        if self.pads is None or self.separators is None:
            return torch.cat([prefix, tokens], dim=1)
        batch, n, (rows, columns) = x.shape[0], self.config.pads, self.grid
        pads, separators = self.pads.to(tokens.dtype), self.separators.to(tokens.dtype)
        ends = pads.expand(batch, rows, n, -1)
        below = pads[:, None].expand(batch, n, columns + n, -1)
        padded = torch.cat([tokens.unflatten(1, self.grid), ends], dim=2)
        padded = torch.cat([padded, below], dim=1).flatten(1, 2)
        return torch.cat([prefix, separators.expand(batch, -1, -1), padded], dim=1)

    def _convolve(self, conv: nn.Conv2d, tokens: Tensor) -> Tensor:
        """A depthwise convolution over the image tokens x_BND."""
        image = conv(rearrange(tokens, "b (h w) d -> b d h w", h=self.grid[0]))
        return as_stream(rearrange(image, "b d h w -> b (h w) d"))

    def _on_padded_grid(self, subset: TokenSubset, also: Tensor) -> TokenSubset:
        if subset.length != self.positions.shape[0]:
            raise ValueError(
                f"DiM: routing was drawn over {subset.length} tokens, the image has "
                f"{self.positions.shape[0]}; draw with plan.draw(batch, model.grid)."
            )
        return subset.embed(self.positions, self.stream_grid[0] * self.stream_grid[1], also)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set all initial values that are not PyTorch's defaults.

        Blocks are live at the start: their modulation is not zero.
        """
        zero_biases(self)
        for block in self.blocks:
            assert isinstance(block, DiMBlock)
            block.mixer.init_weights()  # may set biases that are not zero
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            block.mixer.out_proj.weight.div_(math.sqrt(self.depth))
            nn.init.normal_(block.table, std=self.config.dim**-0.5)
        nn.init.zeros_(self.position)
        t_cond = (self.t_cond.hidden.weight, self.t_cond.out.weight)
        init_embeddings((self.label_token.weight, self.label_cond.weight, *t_cond))
        init_embeddings((self.pads, self.separators))


def _image_positions(grid: tuple[int, int], pads: int) -> Tensor:
    """(N,) int64: where the image tokens stand in the padded grid."""
    rows, columns = grid
    return (torch.arange(rows)[:, None] * (columns + pads) + torch.arange(columns)).flatten()


def _pad_positions(grid: tuple[int, int], pads: int) -> Tensor:
    """(M - N,) int64, ascending: the other places of the padded grid."""
    rows, columns = grid
    ends = torch.arange(rows)[:, None] * (columns + pads) + columns + torch.arange(pads)
    below = torch.arange(rows * (columns + pads), (rows + pads) * (columns + pads))
    return torch.cat([ends.flatten(), below])
