"""What every data set can do, and what their files share.

Shape legend: B batch, C channels, H rows, W columns, n samples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tread_ssm.data.values import Values
from tread_ssm.errors import ConfigError

Augmentation = tuple[Tensor, ...]
"""Random numbers of the samples of a batch: tensors of shape (B, ...)."""

MOST_CLASSES = 1_000_000


class MissingDataError(ConfigError):
    """The data is not there (rather than there and wrong)."""


class Data(Protocol):
    """Samples for training. `open()` of a data configuration makes one.

    Attributes:
        labels: (n,) int64. All 0 where there are no classes.
        class_names: One for each class, () without classes.
        shape: (C, H, W) of one sample.
        values: What its numbers mean.
        notes: Sentences for the user, such as which files were left out.
    """

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def values(self) -> Values: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Augmentation:
        """The random numbers of `batch` samples, such as which of them are mirrored."""
        ...

    def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
        """The samples of these numbers.

        Args:
            index_B: int64 numbers of samples.
            augmentation: The same B rows of what `sample_augmentation` gave.

        Returns:
            (B, C, H, W) float32.

        Raises:
            ConfigError: A sample cannot be read.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, as JSON takes it; it differs where the data was changed.

        Cheap: names, counts, sizes and stored checksums are compared, not every byte.
        """
        ...


def fingerprint(data: Data, size: int, parts: Iterable[str]) -> dict[str, Any]:
    """A fingerprint.

    Args:
        data: The data set.
        size: Bytes on the disk.
        parts: What tells the content apart, such as names and checksums of files.
    """
    classes = list(data.class_names)
    counts = {"samples": len(data.labels), "shape": list(data.shape), "class_names": classes}
    return counts | {"bytes": size, "digest": digest(parts)}


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts in their order, in hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(os.fsencode(part) + b"\0")
    return whole.hexdigest()


def existing(path: str, remedy: str = "") -> Path:
    """The path.

    Raises:
        MissingDataError: There is nothing there.
    """
    if not Path(path).exists():
        raise MissingDataError(f"data.path: {path} does not exist{remedy}.")
    return Path(path)


def labelled(
    labels: np.ndarray | None, names: Sequence[str] | None, n: int, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) int64 labels and one name per class; without labels all 0 and no class.

    Raises:
        ConfigError: They do not fit together, or not to n samples.
    """
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
    if count > MOST_CLASSES:
        raise ConfigError(
            f"data.path: a label of {path} is {count - 1}; labels number the classes from 0, and "
            f"there may be {MOST_CLASSES:,} of them."
        )
    if names is None:
        names = [str(i) for i in range(count)]
    odd = [n for n in names if not isinstance(n, str) or not n.isprintable() or not n]
    if odd:
        raise ConfigError(
            f"data.path: {path} names a class {odd[0]!r}; names are text without line breaks."
        )
    if len(names) < count:
        raise ConfigError(
            f"data.path: {path} names {len(names)} classes, but a label is {count - 1}."
        )
    return labels.astype(np.int64), tuple(names)


def sample_mirrored(batch: int, flip: bool, rng: torch.Generator) -> Tensor:
    """(batch,) bool: half of the samples, or none."""
    return torch.rand(batch, generator=rng) < (0.5 if flip else 0.0)


def read_plain(data: Data, index_B: np.ndarray) -> Tensor:
    """The samples of these numbers as they are: nothing mirrored, latents at their mean."""
    augmentation = data.sample_augmentation(len(index_B), torch.Generator().manual_seed(0))
    return data.read(index_B, tuple(torch.zeros_like(a) for a in augmentation))


def to_model(images_BHWC: np.ndarray, mirrored_B: Tensor | None) -> Tensor:
    """uint8 images as (B, C, H, W) float32 in [-1, 1], some of them mirrored."""
    x = rearrange(torch.from_numpy(images_BHWC), "b h w c -> b c h w").to(torch.float32)
    x = x.div_(127.5).sub_(1.0)
    if mirrored_B is None:
        return x
    return torch.where(mirrored_B[:, None, None, None], x.flip(3), x)
