"""What every mixer and its config offer, and what several mixers share.

Shape legend: B batch, L tokens of the stream (prefix and whatever image tokens are present),
D channels, E inner channels (expand * D), H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.scan import gated_norm
from tread_ssm.scan.order import OrderName
from tread_ssm.tokens import Layout


class Mixer(nn.Module):
    """x_BLD -> x_BLD: moves information between the tokens of a stream.

    The stream stands in raster order before and after; `layout` says which tokens are there and
    how a scan visits them.

    Attributes:
        out_proj: The last linear map, which backbones may scale by their depth.
    """

    out_proj: nn.Linear

    def init_weights(self) -> None:
        """Set the initial values for which PyTorch's defaults are not meant."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        raise NotImplementedError


class SharedMixer(Mixer):
    """A mixer that belongs to several blocks: its parameters are the backbone's, not the block's.

    So the state dict holds them once, and FSDP2, which cuts the model into blocks, keeps them with
    the rest of the backbone.
    """

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self._mixer = (mixer,)  # in a tuple, which torch does not look into

    @property
    def out_proj(self) -> nn.Linear:  # type: ignore[override]
        return self._mixer[0].out_proj

    def init_weights(self) -> None:
        self._mixer[0].init_weights()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x_BLD of the stream that `layout` describes -> x_BLD."""
        return cast(Tensor, self._mixer[0](x, layout))


@dataclass(frozen=True, kw_only=True)
class BaseMixerConfig:
    """What a backbone needs of a mixer's config.

    Attributes:
        kind: Name of the mixer.
    """

    kind: str

    def check(self, dim: int) -> None:
        """Raise ValueError where the mixer is not possible for a stream of `dim` channels."""

    def build(self, dim: int, order: OrderName) -> Mixer:
        """The mixer of a stream of `dim` channels; one that scans does so along `order`."""
        raise NotImplementedError


def check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    """Check that a number lies in least..most.

    Raises:
        ValueError: It does not.
    """
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} is {value}; it must be {limits}.")


def check_ways(name: str, bidirectional: bool, own_backward: bool) -> None:
    """Check that parameters of a way back are asked for where there is one.

    Raises:
        ValueError: They are not.
    """
    if own_backward and not bidirectional:
        raise ValueError(f"{name}: own_backward needs bidirectional: true.")


def count_heads(name: str, channels: int, head_dim: int, groups: int = 1) -> int:
    """How many heads of `head_dim` share `channels`, in `groups`.

    Raises:
        ValueError: head_dim does not divide channels, or groups the heads.
    """
    if channels % head_dim:
        raise ValueError(
            f"{name}: {channels} channels are not a multiple of head_dim {head_dim}; choose "
            f"another head_dim or width."
        )
    heads = channels // head_dim
    if heads % groups:
        raise ValueError(f"{name}: {heads} heads cannot be shared by {groups} groups evenly.")
    return heads


@torch.no_grad()
def init_step_bias(bias: Tensor) -> None:
    """Set a step bias such that softplus(bias) is log-uniform in [0.001, 0.1] (Mamba, section
    3.6)."""
    dt = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class SplitLinear(nn.Linear):
    """x_BLD -> x_BLE for each E of `sizes`: linear maps without biases that share one weight.

    The weight of the product is padded to a multiple of 16 rows, so that each row of the result is
    aligned. Other widths make products slower by a third on a CPU, and more on a GPU.
    """

    def __init__(self, dim: int, sizes: Sequence[int]) -> None:
        super().__init__(dim, sum(sizes), bias=False)
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        padding = -self.out_features % 16
        weight = F.pad(self.weight, (0, 0, 0, padding)) if padding else self.weight
        return F.linear(x, weight).split([*self.sizes, padding], dim=-1)[:-1]


class GatedRMSNorm(nn.Module):
    """y_BLE, z_BLE -> RMSNorm(y * SiLU(z)) of each of `groups` equal parts, times a weight_E."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return gated_norm(y, z, self.weight, self.groups)


class GroupedRMSNorm(nn.Module):
    """x_BLE -> x_BLE: RMSNorm of each of `groups` equal parts of the channels, times a weight_E."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(-2) * self.weight


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (..., N) with its first S pairs of neighbouring channels turned by angles (..., S)."""
    n = 2 * angles.shape[-1]
    even, odd = x[..., :n].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), x[..., n:]], dim=-1)
