"""What all backbones share at their two ends: patches, t, label, and back to an image.

Shape legend: B batch, C channels, H, W image height and width, N image tokens, D channels of a
token, P side of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """x_BCHW -> x_BND: each P x P patch through one affine map, in raster order."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # A stream laid out in memory as a routed one is, so that a draw which drops nothing gives
        # the very bits of the dense network.
        return self.projection(x).flatten(2).transpose(1, 2).contiguous()


def unpatchify(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """x_BN(PPC) -> x_BCHW; inside a token values are ordered (row, column, channel)."""
    x = x.unflatten(2, (patch, patch, -1)).unflatten(1, grid)  # (B, rows, columns, P, P, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """t_B -> (B, dim): cosines, then sines, of angular frequencies 1 down to about 1e-4.

    Computed in at least float32, whatever autocast says. Levels should spread over a range of the
    order of 1000 (as diffusion steps do) for the frequencies to tell them apart.
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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x_BND * (1 + scale_BD) + shift_BD."""
    return x * (1 + scale[:, None]) + shift[:, None]


def as_stream(x: Tensor) -> Tensor:
    """x in the residual stream's dtype: float32, or float64 where x is; never half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_shape(
    name: str, image_size: int, channels: int, n_classes: int, patch: int, dim: int, depth: int
) -> tuple[int, int]:
    """The token grid (rows, columns) of a backbone. Raises ValueError for impossible sizes."""
    for field, value, least in (
        ("image_size", image_size, 1),
        ("channels", channels, 1),
        ("n_classes", n_classes, 0),
        ("patch", patch, 1),
        ("depth", depth, 1),
        ("dim", dim, 2),
    ):
        if value < least:
            raise ValueError(f"{name}: {field} is {value}; it must be at least {least}.")
    if image_size % patch:
        raise ValueError(
            f"{name}: image_size {image_size} is not a multiple of patch {patch}; "
            f"use {image_size // patch * patch or patch} or another patch."
        )
    if dim % 2:
        raise ValueError(f"{name}: dim is {dim}; the sinusoids need an even number.")
    return image_size // patch, image_size // patch


def check_inputs(
    name: str,
    shape: tuple[int, int, int],
    n_classes: int,
    x: Tensor,
    t: Tensor,
    labels: Tensor,
    weight: Tensor,
) -> None:
    """Refuse a batch that a backbone for images of `shape` = (C, H, W) cannot take.

    weight: one of its weights, for their dtype.

    Looks at values only where that is free (eager, on the CPU), so nothing waits for a device.
    Raises ValueError, TypeError.
    """
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
            raise TypeError(f"{name}: {argument} is {tensor.dtype}; pass a floating-point tensor.")
    _check_precision(name, x, weight.dtype)
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}: labels are {labels.dtype}; pass class numbers as torch.int64.")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > n_classes:
            raise ValueError(
                f"{name}: labels run from {low} to {high}, but there are {n_classes} classes; "
                f"use 0..{n_classes}, where {n_classes} stands for no class."
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


class WithTables(nn.Module):
    """A module with buffers that its configuration determines and no state dict holds.

    They are made anew whenever the module is converted, so that one that was built on the meta
    device and then given memory (`to_empty`, sharded loading) does not compute with rubbish.
    """

    def tables(self) -> dict[str, Tensor]:
        """The buffers by name."""
        raise NotImplementedError

    def register_tables(self) -> None:
        """Add the buffers to the module, on the default device."""
        for name, table in self.tables().items():
            self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WithTables:
        super()._apply(fn, recurse)
        with torch.device("cpu"):
            for name, table in self.tables().items():
                setattr(self, name, table.to(getattr(self, name)))  # its device and dtype
        return self
