"""Losses on the tokens behind one block, taken over those that its route keeps.

Shape legend: B batch, G samples of a group, N tokens of the grid, K those that a route keeps, D
channels of a token, E of a feature, V numbers in a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tread_ssm.diffusion.auxiliary import Seen, check_weight, kept_values
from tread_ssm.diffusion.objective import check_positive, wide
from tread_ssm.diffusion.route_loss import patchify

Projector = Literal["mlp", "conv"]


@dataclass(frozen=True, kw_only=True)
class SRA2:
    """Regress the clean patch from an early block's token (SRA 2, arXiv 2601.17830).

    The smooth-L1 distance between head(token) and the patch of the clean image (or latent) at the
    same place. It needs nothing but the data. The paper takes block 2 of a DiT-B and block 8 of
    larger ones, a head of five linear layers, beta 0.05 and weight 1.

    Attributes:
        kind: Always "sra2".
        block: Whose output is looked at, from 0; negative counts from the end.
        weight: Of the loss.
        beta: Where the distance turns from squared to linear.
        projector: The head: "mlp" sees one token at a time; "conv", a 3 x 3 convolution, needs the
            whole grid and therefore a block outside all routes.
        layers: Linear layers of the MLP.
    """

    kind: Literal["sra2"] = "sra2"
    block: int
    weight: float = 1.0
    beta: float = 0.05
    projector: Projector = "mlp"
    layers: int = 5

    together: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_weight(self.kind, self.weight)
        check_positive("sra2: beta", self.beta)
        _check_layers(self.kind, self.layers)

    @property
    def whole_grid(self) -> bool:
        """Whether the head is a convolution."""
        return self.projector == "conv"

    def head(self, dim: int, values: int, grid: tuple[int, int]) -> nn.Module:
        """From a token to a patch, D to V."""
        return projector(self.projector, dim, values, grid, self.layers)

    def loss(self, seen: Seen) -> Tensor:
        """Mean over the kept patches' values."""
        assert seen.features is not None
        target = kept_values(seen, patchify(seen.x, seen.patch))
        return F.smooth_l1_loss(wide(seen.features), target, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class Repa:
    """Align a block's tokens with cached features of the image (REPA, arXiv 2410.06940).

    Minus the cosine between head(token) and the feature at the same place, averaged over the kept
    tokens. The paper takes DINOv2's features, block 8 (4 of a DiT-B), a head of three linear
    layers, and weight 0.5.

    Attributes:
        kind: Always "repa".
        block: Whose output is looked at, from 0; negative counts from the end.
        features: The folder that the command cache wrote.
        channels: Of the features: 768 for a ViT-B.
        weight: Of the loss.
        projector: The head: "mlp" sees one token at a time; "conv", a 3 x 3 convolution, needs the
            whole grid and therefore a block outside all routes.
        layers: Linear layers of the MLP.
    """

    kind: Literal["repa"] = "repa"
    block: int
    features: str
    channels: int = 768
    weight: float = 0.5
    projector: Projector = "mlp"
    layers: int = 3

    together: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_weight(self.kind, self.weight)
        _check_layers(self.kind, self.layers)

    @property
    def whole_grid(self) -> bool:
        """Whether the head is a convolution."""
        return self.projector == "conv"

    def head(self, dim: int, values: int, grid: tuple[int, int]) -> nn.Module:
        """From a token to a feature, D to E."""
        return projector(self.projector, dim, self.channels, grid, self.layers)

    def loss(self, seen: Seen) -> Tensor:
        """Minus the mean cosine over the kept tokens."""
        assert seen.features is not None and seen.cached is not None
        target = kept_values(seen, seen.cached)
        return -F.cosine_similarity(wide(seen.features), wide(target), dim=2).mean()


@dataclass(frozen=True, kw_only=True)
class Dispersive:
    """Samples of a batch repel each other (Wang and He, arXiv 2506.09027, InfoNCE with l2).

    log mean_ij exp(-d_ij / temperature) over all pairs of a group, each sample with itself
    included. d_ij is the mean squared difference of the two samples' tokens. Where each sample
    keeps other tokens, it runs over those that both keep.

    Attributes:
        kind: Always "dispersive".
        block: Whose output is looked at, from 0; negative counts from the end.
        weight: Of the loss.
        temperature: tau.
        group: Samples that repel each other. What a process runs at once must be a multiple of it,
            so that a run is the same on any number of processes.
    """

    kind: Literal["dispersive"] = "dispersive"
    block: int
    weight: float = 0.5
    temperature: float = 0.5
    group: int = 32

    whole_grid: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_weight(self.kind, self.weight)
        check_positive("dispersive: temperature", self.temperature)
        if self.group < 2:
            raise ValueError(f"dispersive: group is {self.group}; a pair takes at least 2 samples.")

    @property
    def together(self) -> int:
        """The group."""
        return self.group

    def head(self, dim: int, values: int, grid: tuple[int, int]) -> None:
        """None: tokens are compared as they are."""

    def loss(self, seen: Seen) -> Tensor:
        """Mean over the groups."""
        assert seen.features is not None
        z = wide(seen.features)
        kept = torch.ones(z.shape[:2], device=z.device, dtype=z.dtype)
        if seen.kept is not None:
            kept = seen.kept.mask().to(z.dtype)
            z = seen.kept.put(z, z.new_zeros(*kept.shape, z.shape[2]))
        distance, common = squared_distances(
            z.unflatten(0, (-1, self.group)), kept.unflatten(0, (-1, self.group))
        )
        # Two samples that have no token in common are no pair.
        exponent = (-distance / self.temperature).masked_fill(common == 0, -torch.inf).flatten(1)
        pairs = (common > 0).flatten(1).sum(1).to(z.dtype)
        return (exponent.logsumexp(1) - pairs.log()).mean()


def squared_distances(z: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared differences of all pairs of samples, and the number of tokens in common.

    Args:
        z: (groups, G, N, D), zero at tokens that are not kept.
        kept: (groups, G, N), 1 where a token is kept, else 0.

    Returns:
        (groups, G, G) each; the distance is 0 where there is no token in common.
    """
    own = z.square().sum(3)  # (groups, G, N)
    common = kept @ kept.mT
    product = z.flatten(2) @ z.flatten(2).mT
    total = own @ kept.mT + kept @ own.mT - 2 * product
    return total.clamp_min(0) / (common.clamp_min(1) * z.shape[3]), common


def projector(kind: Projector, dim: int, out: int, grid: tuple[int, int], layers: int) -> nn.Module:
    """A head from tokens (B, K, D) to (B, K, out); "conv" takes all tokens of the grid."""
    if kind == "conv":
        return nn.Sequential(
            nn.Unflatten(1, grid),
            _ChannelsFirst(),
            nn.Conv2d(dim, out, 3, padding=1),
            nn.Flatten(2),
            _ChannelsFirst(),
        )
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(dim, dim), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(dim, out))


class _ChannelsFirst(nn.Module):
    """Moves the last dimension behind the batch; for two dimensions, swaps them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


def _check_layers(kind: str, layers: int) -> None:
    if layers < 1:
        raise ValueError(f"{kind}: layers is {layers}; a head has at least 1.")
