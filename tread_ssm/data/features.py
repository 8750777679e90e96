"""Features of the training images on disk, in the shards that latents have.

Shape legend: B batch, N patches of an image, E channels of a feature, h, w patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tread_ssm.data.dataset import MissingDataError
from tread_ssm.data.shards import (
    Manifest,
    PosteriorMoments,
    open_labels,
    open_moments,
    read_manifest,
)
from tread_ssm.errors import ConfigError


@dataclass(frozen=True)
class CachedFeatures:
    """Features (n, E, h, w) of unit length, read as (B, N, E) float32.

    Attributes:
        values: Of the images.
        mirrored: Of the mirrored images. None: they were not stored.
        manifest: What the folder holds.
    """

    values: PosteriorMoments
    mirrored: PosteriorMoments | None
    manifest: Manifest

    def read(self, index_B: np.ndarray, mirrored_B: Tensor) -> Tensor:
        """The features of the images of these numbers, some of them mirrored.

        Raises:
            ConfigError: A file is gone or shorter than it was.
        """
        try:
            read = torch.from_numpy(self.values.take(index_B))
            if self.mirrored is not None and bool(mirrored_B.any()):
                read[mirrored_B] = torch.from_numpy(self.mirrored.take(index_B[mirrored_B.numpy()]))
        except ValueError as error:
            raise ConfigError(f"features: {error}") from None
        return read.to(torch.float32).flatten(2).mT


def open_features(path: str | Path, labels: np.ndarray, flip: bool) -> CachedFeatures:
    """Open a folder that the command cache wrote.

    Args:
        path: The folder.
        labels: (n,) int64, of the training data; the features must be of the same samples.
        flip: Whether training mirrors images.

    Raises:
        ConfigError: The folder is missing, damaged, or of other data.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise MissingDataError(f"features: {path} does not exist; `tread-ssm cache` makes it.")
    try:
        manifest = read_manifest(folder)
        if manifest.holds != "features":
            raise ValueError(f"{folder} holds latents, no features.")
        values = open_moments(folder, manifest.shards, manifest.shape)
        mirrored = open_moments(folder, manifest.mirrored, manifest.shape) if flip else None
        of = open_labels(folder, manifest)
    except ValueError as error:
        raise ConfigError(f"features: {error}") from None
    if flip and not manifest.mirrored:
        raise ConfigError(
            f"features: data.flip is true, but {folder} holds no mirrored images; cache them with "
            f"mirrored images, or set flip to false."
        )
    of = np.zeros(manifest.count, dtype=np.int64) if of is None else of
    if not np.array_equal(of, labels):
        raise ConfigError(
            f"features: {folder} holds {len(of)} samples whose labels are not those of the "
            f"{len(labels)} training samples; cache the features of the images that the training "
            f"data was made of."
        )
    return CachedFeatures(values, mirrored, manifest)
