"""Images in an .npz, held in memory.

Shape legend: B batch, C channels, H rows, W columns, n samples.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
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
    to_model,
)
from tread_ssm.data.held_out import HeldOut
from tread_ssm.data.values import PixelValues
from tread_ssm.errors import ConfigError

_NAMES = (("images", "arr_0"), ("labels", "arr_1"))
_DEFLATE = 1032  # bytes at most that deflate makes out of one


@dataclass(frozen=True, kw_only=True)
class ArrayData(HeldOut):
    """An .npz with `images` uint8 (n, H, W, C), perhaps `labels` (n,) and `class_names`.

    `arr_0` and `arr_1`, as ADM's sets of samples have them, are read as `images` and `labels`.

    Attributes:
        kind: "array".
        path: The file.
        flip: Mirror half of the images, sampled anew for each batch.
    """

    kind: Literal["array"] = "array"
    path: str
    flip: bool = False

    def open(self) -> Pixels:
        """Read the file into memory.

        Raises:
            ConfigError: The file is missing, damaged, or holds something else.
        """
        path = existing(self.path)
        if path.suffix != ".npz" or not path.is_file():
            raise ConfigError(f"data.path: {path} is not an .npz file.")
        held = load_arrays(path, "images", "labels", "class_names", "arr_0", "arr_1")
        images, labels = (held.get(a, held.get(b)) for a, b in _NAMES)
        names = held.get("class_names")
        if images is None:
            raise ConfigError(f"data.path: {path} holds no array `images` or `arr_0`.")
        if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape[1:]:
            raise ConfigError(
                f"data.path: the images of {path} are {images.dtype} of shape {images.shape}; "
                f"expected uint8 (n, height, width, channels)."
            )
        listed = None if names is None else names.ravel().tolist()
        classes = labelled(labels, listed, len(images), path)
        return Pixels(images, *classes, self.flip, archive_parts(path))


@dataclass(frozen=True)
class Pixels:
    """Images (n, H, W, C) uint8 in memory, read as (B, C, H, W) float32 in [-1, 1].

    Attributes:
        images: All of them.
        labels: (n,) int64.
        class_names: One for each class.
        flip: Whether half of the images are mirrored.
        parts: What tells the content apart, see `archive_parts`.
        notes: None.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    flip: bool
    parts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @property
    def values(self) -> PixelValues:
        """What the numbers mean."""
        return PixelValues()

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Augmentation:
        """Which samples are mirrored, (batch,) bool."""
        return (sample_mirrored(batch, self.flip, rng),)

    def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
        """The samples of these numbers; see `Data.read`."""
        return to_model(self.images[index_B], augmentation[0] if self.flip else None)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is; see `Data.fingerprint`."""
        return fingerprint(self, self.images.nbytes, self.parts)


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Those of the named arrays that an .npz holds, in memory.

    Raises:
        ConfigError: The file cannot be read, or an array is not what its header says. That is
            found before memory is taken for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: info for info in archive.infolist()}
            return {
                name: _array(archive, held[f"{name}.npy"])
                for name in names
                if f"{name}.npy" in held
            }
    except Exception as error:  # damaged archives and headers fail in any way
        raise ConfigError(f"data.path: {path} is no readable .npz ({error}).") from None


def archive_parts(path: Path) -> tuple[str, ...]:
    """Name, size and CRC-32 of each array of an .npz, as they stand in the file."""
    with zipfile.ZipFile(path) as archive:
        return tuple(f"{i.filename} {i.file_size} {i.CRC}" for i in archive.infolist())


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        promised, there = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, not numbers")
    if promised != there or info.file_size > _DEFLATE * info.compress_size:
        raise ValueError(
            f"{info.filename} says that it is {dtype} of shape {shape}, which its "
            f"{info.compress_size} bytes cannot be"
        )
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
