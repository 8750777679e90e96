"""A folder of latents (see `shards`), sampled anew from their posterior whenever they are read.

Shape legend: B batch, C channels, H rows, W columns, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tread_ssm.data.dataset import (
    Augmentation,
    existing,
    fingerprint,
    labelled,
    sample_mirrored,
)
from tread_ssm.data.held_out import HeldOut
from tread_ssm.data.shards import (
    Manifest,
    PosteriorMoments,
    open_labels,
    open_moments,
    read_manifest,
)
from tread_ssm.data.values import LatentValues
from tread_ssm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LatentData(HeldOut):
    """A folder of an autoencoder's moments that `tread-ssm prepare` made.

    A latent is sampled anew whenever it is read, then scaled as the manifest says.

    Attributes:
        kind: "latents".
        path: The folder.
        vae: The autoencoder that decodes: a folder, or an identifier on the Hugging Face Hub.
            null: the one in the manifest.
        flip: Take the moments of the mirrored image half of the time; they must have been stored.
    """

    kind: Literal["latents"] = "latents"
    path: str
    vae: str | None = None
    flip: bool = False

    def open(self) -> Latents:
        """Open the shards; they stay on the disk.

        Raises:
            ConfigError: Something is missing, cut short, or not what the manifest says.
        """
        path = existing(self.path, "; `tread-ssm prepare` makes it")
        try:
            return self._open(path)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"data.path: {error}") from None

    def _open(self, path: Path) -> Latents:
        manifest = read_manifest(path)
        if manifest.holds != "moments":
            raise ConfigError(f"data.path: {path} holds features of images, no latents.")
        if self.flip and not manifest.mirrored:
            raise ConfigError(
                f"data.flip: {path} holds no mirrored images; prepare it with mirrored images, or "
                f"set flip to false."
            )
        return Latents(
            open_moments(path, manifest.shards, manifest.shape),
            open_moments(path, manifest.mirrored, manifest.shape) if self.flip else None,
            *labelled(open_labels(path, manifest), manifest.class_names, manifest.count, path),
            manifest,
            self.vae,
        )


@dataclass(frozen=True)
class Latents:
    """Moments (n, 2C, H, W), read as samples of the posterior (B, C, H, W) float32, scaled.

    Attributes:
        moments: Of the images.
        mirrored: Of the mirrored images. None: not used.
        labels: (n,) int64.
        class_names: One for each class.
        manifest: What the folder holds.
        vae: The autoencoder that decodes. None: the manifest's.
        notes: None.
    """

    moments: PosteriorMoments
    mirrored: PosteriorMoments | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    manifest: Manifest
    vae: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        _, channels, height, width = self.moments.shape
        return channels // 2, height, width

    @property
    def values(self) -> LatentValues:
        """What the numbers mean."""
        values = self.manifest.values
        return values if self.vae is None else replace(values, vae=self.vae)

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Augmentation:
        """Which samples are mirrored, (batch,) bool, and the posterior's noise (batch, C, H, W)."""
        mirrored = sample_mirrored(batch, self.mirrored is not None, rng)
        return mirrored, torch.randn(batch, *self.shape, generator=rng)

    def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
        """The samples of these numbers; see `Data.read`."""
        mirrored, noise = augmentation
        try:
            moments = torch.from_numpy(self.moments.take(index_B))
            if self.mirrored is not None and bool(mirrored.any()):
                moments[mirrored] = torch.from_numpy(self.mirrored.take(index_B[mirrored.numpy()]))
        except ValueError as error:
            raise ConfigError(
                f"data.path: {error} Prepare it again, then rerun the command to resume."
            ) from None
        return sample_posterior(moments, noise, self.manifest.values)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is; see `Data.fingerprint`."""
        files = self.manifest.files
        parts = (f"{f.name} {f.sha256}" for f in files)
        values = self.manifest.values
        scaling = map(str, (values.scale, *values.mean, *values.deviation))
        return fingerprint(self, self.moments.nbytes, (*scaling, *parts))


def sample_posterior(moments: Tensor, noise: Tensor, values: LatentValues) -> Tensor:
    """Latents (B, C, H, W) float32, scaled, of moments (B, 2C, H, W) and normal noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    deviation = log_variance.to(torch.float32).clamp(-30.0, 20.0).mul_(0.5).exp_()
    return values.scaled_(deviation.mul_(noise).add_(mean))
