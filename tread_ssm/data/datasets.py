"""Which data a run reads, and in which order: both can be known from the configuration.

Which samples a step sees is a pure function of (seed, step): resuming costs nothing, an epoch
loses and doubles no sample, and any number of processes sees the same global batches.

Shape legend: n samples, C channels, H rows, W columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tread_ssm.data import load_emoji
from tread_ssm.data.images import list_images
from tread_ssm.data.shards import open_labels, open_moments, read_manifest
from tread_ssm.data.sources import Data, FolderPixels, Latents, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.randomness import generator


class MissingDataError(ConfigError):
    """The data is not there (rather than there and wrong)."""


@dataclass(frozen=True)
class EmojiData:
    """The embedded Noto emoji: 1906 images, 9 classes, at 8, 16 or 32 pixels."""

    kind: Literal["emoji"] = "emoji"
    size: Literal[8, 16, 32] = 16
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class ArrayData:
    """An .npz with `images` uint8 (n, H, W, C), and perhaps `labels` (n,) and `class_names`."""

    kind: Literal["array"] = "array"
    path: str
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class FolderData:
    """A folder of images in ImageNet's layout, a sub-folder a class, or of images alone.

    Each is cut to its central square (as ADM does) and brought to `size` pixels whenever it is
    read, by `threads` threads a process.
    """

    kind: Literal["folder"] = "folder"
    path: str
    size: int
    flip: bool = False
    threads: int = 4

    def __post_init__(self) -> None:
        for name in ("size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class LatentData:
    """A folder of autoencoder moments that scripts/prepare_latents.py made.

    A latent is sampled anew whenever it is read, then multiplied by the manifest's scale. `flip`
    takes the moments of the mirrored image half of the time, where they were stored. `vae` says
    which autoencoder decodes (a folder, or an identifier); null: the one in the manifest.
    """

    kind: Literal["latents"] = "latents"
    path: str
    vae: str | None = None
    flip: bool = False


DataConfig = EmojiData | ArrayData | FolderData | LatentData


def open_data(config: DataConfig) -> Data:
    """Open what the configuration names; large arrays stay on disk. Raises ConfigError."""
    if isinstance(config, EmojiData):
        images, labels, names = load_emoji(config.size)
        return Pixels(images, labels, names, config.flip)
    path = Path(config.path)
    if not path.exists():
        remedy = "; scripts/prepare_latents.py makes it" if config.kind == "latents" else ""
        raise MissingDataError(f"data.path: {path} does not exist{remedy}.")
    if isinstance(config, ArrayData):
        return _open_array(path, config)
    try:
        return _open_folder(config) if isinstance(config, FolderData) else _open_latents(config)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data.path: {error}") from None


def _open_array(path: Path, config: ArrayData) -> Pixels:
    if path.suffix != ".npz" or not path.is_file():
        raise ConfigError(f"data.path: {path} is not an .npz file.")
    with np.load(path, allow_pickle=False) as archive:
        if "images" not in archive:
            raise ConfigError(f"data.path: {path} holds no array `images`.")
        images = archive["images"]
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ConfigError(
                f"data.path: `images` of {path} is {images.dtype} of shape {images.shape}; "
                f"expected uint8 (n, height, width, channels)."
            )
        labels = archive.get("labels")
        names = [str(n) for n in archive["class_names"]] if "class_names" in archive else None
    return Pixels(images, *_labels(labels, names, len(images), path), config.flip)


def _open_folder(config: FolderData) -> FolderPixels:
    images = list_images(config.path)
    labels, names = _labels(images.labels, images.class_names, len(images), images.root)
    return FolderPixels(images, config.size, labels, names, config.flip, config.threads)


def _open_latents(config: LatentData) -> Latents:
    path = Path(config.path)
    manifest = read_manifest(path)
    if config.flip and not manifest.mirrored:
        raise ConfigError(
            f"data.flip: {path} holds no mirrored images; prepare it with --flip, or set flip to "
            f"false."
        )
    return Latents(
        open_moments(path, manifest.shards, manifest.shape),
        open_moments(path, manifest.mirrored, manifest.shape) if config.flip else None,
        *_labels(open_labels(path, manifest), manifest.class_names, manifest.count, path),
        manifest.scale,
        config.vae or manifest.vae,
    )


def _labels(
    labels: np.ndarray | None, names: Sequence[str] | None, n: int, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 labels and one name per class; no labels: all 0 and no class."""
    if n == 0:
        raise ConfigError(f"data.path: {path} holds no samples.")
    if labels is None:
        return np.zeros(n, dtype=np.int64), ()
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        raise ConfigError(
            f"data.path: labels of {path} are {labels.dtype} of shape {labels.shape}; expected "
            f"{n} whole numbers from 0."
        )
    count = int(labels.max()) + 1
    if names is None:
        names = [str(i) for i in range(count)]
    if len(names) < count:
        raise ConfigError(
            f"data.path: {path} names {len(names)} classes, but a label is {count - 1}."
        )
    return labels.astype(np.int64), tuple(names)


def batch_index(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """(batch,) int64, the samples of `step`: a stretch of all epochs' permutations in a row."""
    first, last = step * batch, (step + 1) * batch
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        start = epoch * n
        parts.append(_permutation(n, seed, epoch)[max(first - start, 0) : last - start])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n, generator=generator(seed, epoch, "order")).numpy()
