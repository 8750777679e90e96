"""What all backbones share at their two ends: patches, t, label, and back to an image.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, D channels of a
token, P side of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """x_BCHW -> x_BND: each P x P patch through one affine map, in raster order."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # A stream laid out in memory as a routed one is, so that a draw which drops nothing gives
        # the very bits of the dense network.
        return rearrange(self.projection(x), "b d h w -> b (h w) d").contiguous()


def unpatchify(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """x_BN(PPC) -> x_BCHW; inside a token values are ordered (row, column, channel)."""
    rows, p = grid[0], patch
    return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """t_B -> (B, dim): cosines, then sines, of angular frequencies 1 down to about 1e-4.

    Computed in at least float32, whatever autocast says. Values of t should spread over a range of
    the order of 1000 (as diffusion steps do) for the frequencies to tell them apart.
    """
    half = dim // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    steps = torch.arange(half, device=t.device, dtype=t.dtype)
    angle = t[:, None] * torch.exp(steps * (-math.log(1e4) / half))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """t_B -> (B, D): sinusoid of width 256, Linear, SiLU, Linear (DiT, arXiv 2212.09748)."""

    WIDTH = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(self.WIDTH, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        waves = sinusoid(t, self.WIDTH).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(waves)))


def label_embedding(n_classes: int, dim: int) -> nn.Embedding:
    """A table of n_classes + 1 rows; the last one stands for "no class"."""
    return nn.Embedding(n_classes + 1, dim)


class Head(nn.Module):
    """Tokens x_BND and a condition_BD -> an image: norm, modulation, one linear map a token."""

    def __init__(self, norm: nn.Module, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.norm, self.patch = norm, patch
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, patch**2 * channels)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=1)
        out = self.linear(modulate(self.norm(x), shift, scale))
        return as_stream(unpatchify(out, grid, self.patch))

    def init_to_zero(self) -> None:
        """Make the first predictions zero (adaLN-zero)."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.linear.weight)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x_BND * (1 + scale_BD) + shift_BD."""
    return x * (1 + scale[:, None]) + shift[:, None]


def as_stream(x: Tensor) -> Tensor:
    """x in the residual stream's dtype: float32, or float64 where x is; never half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
