"""What training reads samples from: pixels or latents, in memory or on disk.

Shape legend: B global batch, C channels, H rows, W columns, n samples.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tread_ssm.data.images import ImageFolder, read_image
from tread_ssm.data.shards import PosteriorMoments
from tread_ssm.errors import ConfigError


@dataclass(frozen=True)
class PixelValues:
    """The model's numbers are pixels between `low` (black) and `high`."""

    kind: Literal["pixels"] = "pixels"
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class LatentValues:
    """The model's numbers are latents of the autoencoder `vae`, times `scale`."""

    kind: Literal["latents"] = "latents"
    scale: float = 0.18215
    vae: str | None = None


Values = PixelValues | LatentValues


@dataclass(frozen=True)
class Pixels:
    """Images (n, H, W, C) uint8, read as (B, C, H, W) float32 in [-1, 1]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def values(self) -> PixelValues:
        """What the numbers mean."""
        return PixelValues()

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Tensor:
        """(batch,) bool, which samples are mirrored."""
        return sample_mirrored(batch, self.flip, rng)

    def read(self, index: np.ndarray, augmentation: Tensor) -> Tensor:
        """The samples `index`, with this part of what `sample_augmentation` gave."""
        return to_model(self.images[index], augmentation if self.flip else None)


@dataclass(frozen=True)
class FolderPixels:
    """Image files, decoded and cut to squares whenever they are read, by `threads` threads."""

    images: ImageFolder
    size: int
    labels: np.ndarray
    class_names: tuple[str, ...]
    flip: bool
    threads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return 3, self.size, self.size

    @property
    def values(self) -> PixelValues:
        """What the numbers mean."""
        return PixelValues()

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Tensor:
        """(batch,) bool, which samples are mirrored."""
        return sample_mirrored(batch, self.flip, rng)

    def read(self, index: np.ndarray, augmentation: Tensor) -> Tensor:
        """The samples `index`, with this part of what `sample_augmentation` gave.

        Raises ConfigError where a file cannot be read.
        """
        paths = [self.images.root / self.images.paths[i] for i in index]
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                images = list(pool.map(read_image, paths, repeat(self.size)))
        except ValueError as error:
            raise ConfigError(
                f"data.path: {error} Mend or replace it, and the same command goes on."
            ) from None
        return to_model(np.stack(images), augmentation if self.flip else None)


@dataclass(frozen=True)
class Latents:
    """Moments (n, 2C, H, W), read as samples of the posterior (B, C, H, W) float32, scaled."""

    moments: PosteriorMoments
    mirrored: PosteriorMoments | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    scale: float
    vae: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        _, channels, height, width = self.moments.shape
        return channels // 2, height, width

    @property
    def values(self) -> LatentValues:
        """What the numbers mean."""
        return LatentValues(scale=self.scale, vae=self.vae)

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(batch,) bool, which samples are mirrored, and the posterior's noise (batch, C, H, W)."""
        mirror = torch.rand(batch, generator=rng) < (0.0 if self.mirrored is None else 0.5)
        return mirror, torch.randn(batch, *self.shape, generator=rng)

    def read(self, index: np.ndarray, augmentation: tuple[Tensor, Tensor]) -> Tensor:
        """The samples `index`, with this part of what `sample_augmentation` gave."""
        mirror, noise = augmentation
        moments = torch.from_numpy(self.moments.take(index))
        if self.mirrored is not None and bool(mirror.any()):
            moments[mirror] = torch.from_numpy(self.mirrored.take(index[mirror.numpy()]))
        return sample_posterior(moments, noise, self.scale)


Data = Pixels | FolderPixels | Latents


def sample_posterior(moments: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Latents (B, C, H, W) float32, scaled, of moments (B, 2C, H, W) and normal noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    deviation = log_variance.to(torch.float32).clamp(-30.0, 20.0).mul_(0.5).exp_()
    return deviation.mul_(noise).add_(mean).mul_(scale)


def sample_mirrored(batch: int, flip: bool, rng: torch.Generator) -> Tensor:
    """(batch,) bool: half of the samples, or none."""
    return torch.rand(batch, generator=rng) < (0.5 if flip else 0.0)


def to_model(images_BHWC: np.ndarray, mirrored_B: Tensor | None) -> Tensor:
    """uint8 images as (B, C, H, W) float32 in [-1, 1], some of them mirrored."""
    x = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).to(torch.float32)
    x = x.div_(127.5).sub_(1.0)
    if mirrored_B is None:
        return x
    return torch.where(mirrored_B[:, None, None, None], x.flip(3), x)
