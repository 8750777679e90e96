"""DiM, the Mamba diffusion backbone of Teng et al., arXiv 2405.14224.

(Mo and Tian, arXiv 2405.15881, call another network by the same name.)

Shape legend: B batch, C channels, H, W image height and width, N image tokens, M tokens of the
padded grid, L = 2 + pads + M tokens of the stream, D channels of a token.
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
    sinusoid,
    unpatchify,
)
from tread_ssm.models.mixers.mamba1 import DiMBlock, MambaMixer, check_mixer, init_mixer
from tread_ssm.routing.plan import Draw
from tread_ssm.routing.run import run_blocks
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout, TokenSubset

CYCLE: tuple[OrderName, ...] = ("raster", "raster_reversed", "column", "column_reversed")


@dataclass(frozen=True, kw_only=True)
class DiMConfig:
    """A DiM for square images (or latents).

    image_size, channels: of the input, in pixels (or latent places).
    n_classes:     label n_classes means "no class"; 0: unconditional, all labels are 0.
    depth:         blocks, odd and at least 3: one in the middle, pairs with a long skip around it.
    pads:          learned tokens that end every row, stand below the grid and separate it from
                   the prefix: 3 as published, 1, or 0 for none.
    pads_in_route: padding tokens stay in every block ("kept"), or skip a route's blocks like
                   dropped image tokens ("routed").
    gap_decay, true_distance_conv: how a scan meets missing tokens, see MambaMixer.
    """

    kind: Literal["dim"] = "dim"
    image_size: int
    channels: int
    n_classes: int
    dim: int
    depth: int
    patch: int = 2
    d_state: int = 16
    d_conv: int = 3
    expand: int = 2
    pads: int = 3
    pads_in_route: Literal["kept", "routed"] = "kept"
    gap_decay: bool = False
    true_distance_conv: bool = False

    def __post_init__(self) -> None:
        _ = self.grid
        check_mixer("DiMConfig", self.d_state, self.d_conv, self.expand)
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

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""
        return check_shape(
            "DiMConfig",
            self.image_size,
            self.channels,
            self.n_classes,
            self.patch,
            self.dim,
            self.depth,
        )


def scan_orders(depth: int) -> tuple[OrderName, ...]:
    """Each block's order: rows and columns, forward and backward, in turn up to the middle block,
    then mirrored, so that block i and block depth - 1 - i scan alike."""
    return tuple(CYCLE[min(i, depth - 1 - i) % 4] for i in range(depth))


class DiM(WithTables):
    """Diffusion Mamba: x_BCHW, t_B, labels_B -> prediction_BCHW.

    The stream is [t, label, separators, padded grid]; the prefix (all before the grid) comes
    first in every scan and is never routed. Attributes for others: config, grid (of the image
    tokens), depth, blocks, skips, padded_grid, n_prefix.
    """

    positions: Tensor
    pad_positions: Tensor

    def __init__(self, config: DiMConfig) -> None:
        super().__init__()
        dim, pads = config.dim, config.pads
        self.config, self.grid, self.depth = config, config.grid, config.depth
        self.padded_grid = (self.grid[0] + pads, self.grid[1] + pads)
        self.n_prefix = 2 + pads
        # The stream behind block i feeds block depth - i, last in first out; block 0 has no part.
        self.skips = tuple((i, self.depth - i) for i in range(1, (self.depth + 1) // 2))
        self.register_tables()

        self.patches = PatchEmbedding(config.channels, config.patch, dim)
        self.label_token = label_embedding(config.n_classes, dim)
        self.position = nn.Parameter(torch.empty(2 + self.grid[0] * self.grid[1], dim))
        self.conv_in = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.pads = nn.Parameter(torch.empty(pads, dim)) if pads else None
        self.separators = nn.Parameter(torch.empty(pads, dim)) if pads else None

        self.t_cond = TimestepEmbedding(dim)
        self.label_cond = label_embedding(config.n_classes, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.blocks = nn.ModuleList(
            DiMBlock(
                dim,
                MambaMixer(
                    dim,
                    self.padded_grid,
                    order,
                    d_state=config.d_state,
                    d_conv=config.d_conv,
                    expand=config.expand,
                    gap_decay=config.gap_decay,
                    true_distance_conv=config.true_distance_conv,
                ),
                has_skip=i in {target for _, target in self.skips},
            )
            for i, order in enumerate(scan_orders(self.depth))
        )
        self.conv_out = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, config.patch**2 * config.channels)
        init_dim(self)

    def tables(self) -> dict[str, Tensor]:
        pads = self.config.pads
        return {
            "positions": _image_positions(self.grid, pads),
            "pad_positions": _pad_positions(self.grid, pads),
        }

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor,
        *,
        routing: Draw = (),
        checkpoint: bool = False,
    ) -> Tensor:
        """The network's prediction for a batch.

        x:           (B, C, H, W) floating point.
        t: (B,) floating point, of the order of 0..1000 (see embed.sinusoid).
        labels:      (B,) int64 in 0..n_classes; n_classes stands for "no class".
        routing:     a draw over `grid`, from RoutePlan.draw; () runs the dense network.
        checkpoint:  recompute the blocks' activations in the backward pass.

        Returns (B, C, H, W) in float32 (float64 for a float64 model), also under autocast.
        Raises ValueError and TypeError.
        """
        c = self.config
        shape = (c.channels, c.image_size, c.image_size)
        check_inputs("DiM", shape, c.n_classes, x, t, labels, self.head.weight)
        t_token, label_token = sinusoid(t, c.dim), self.label_token(labels)
        cond = self.modulation(F.silu(self.t_cond(t) + self.label_cond(labels)))
        stream = run_blocks(
            tuple(self.blocks),
            self._embed(x, t_token, label_token),
            cond.unflatten(1, (3, c.dim)),
            Layout(self.padded_grid, n_prefix=self.n_prefix),
            self._on_padded_grid(routing),
            skips=self.skips,
            checkpoint=checkpoint,
        )
        image = stream[:, self.n_prefix :].unflatten(1, self.padded_grid)
        image = image[:, : self.grid[0], : self.grid[1]].flatten(1, 2)
        weight = self.head_modulation.weight
        pooled = self.head_modulation(F.silu((t_token + label_token).to(weight.dtype)))
        shift, scale = pooled.chunk(2, dim=1)
        image = modulate(self.norm(self._convolve(self.conv_out, image)), shift, scale)
        return as_stream(unpatchify(self.head(image), self.grid, c.patch))

    def _embed(self, x: Tensor, t_token: Tensor, label_token: Tensor) -> Tensor:
        """The stream x_BLD that enters the first block."""
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
        image = conv(tokens.transpose(1, 2).unflatten(2, self.grid))
        return as_stream(image.flatten(2).transpose(1, 2))

    def _on_padded_grid(self, routing: Draw) -> Draw:
        """A draw over the image tokens, carried over to the padded grid."""
        pads = self.pad_positions
        if self.config.pads_in_route == "routed":
            pads = pads[:0]
        return tuple((route, self._embed_subset(subset, pads)) for route, subset in routing)

    def _embed_subset(self, subset: TokenSubset, also: Tensor) -> TokenSubset:
        if subset.length != self.positions.shape[0]:
            raise ValueError(
                f"DiM: routing was drawn over {subset.length} tokens, the image has "
                f"{self.positions.shape[0]}; draw with plan.draw(batch, model.grid)."
            )
        return subset.embed(self.positions, self.padded_grid[0] * self.padded_grid[1], also)


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


@torch.no_grad()
def init_dim(model: DiM) -> None:
    """All of DiM's initial values that are not PyTorch's defaults.

    Blocks are live at the start: their modulation is not zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.blocks:
        assert isinstance(block, DiMBlock)
        init_mixer(block.mixer)  # sets the step bias, which is not zero
        nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
        block.mixer.out_proj.weight.div_(math.sqrt(model.depth))
        nn.init.normal_(block.table, std=model.config.dim**-0.5)
    nn.init.zeros_(model.position)
    for weight in (
        model.label_token.weight,
        model.label_cond.weight,
        model.t_cond.hidden.weight,
        model.t_cond.out.weight,
        model.pads,
        model.separators,
    ):
        if weight is not None:
            nn.init.normal_(weight, std=0.02)
