"""Image files in a folder.

Shape legend: B batch, C channels, H rows, W columns, n samples.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
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
from tread_ssm.data.images import (
    ImageFolder,
    fitting_size,
    list_images,
    read_image,
    without_damaged,
)
from tread_ssm.data.values import PixelValues
from tread_ssm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FolderData(HeldOut):
    """A folder of images in ImageNet's layout, a sub-folder a class, or of images alone.

    Each image is cut to its central square (as ADM does) and brought to `size` pixels, whenever it
    is read or once before the first step.

    Attributes:
        kind: "folder".
        path: The folder.
        size: Pixels along a side; null: the images' usual shorter side, in fours, at most 64.
        flip: Mirror half of the images, sampled anew for each batch.
        threads: Threads that decode files, in each process.
        check: Read every image before the first step, and leave out those that are damaged. The
            others stay in memory, cut, up to 512 MB.
    """

    kind: Literal["folder"] = "folder"
    path: str
    size: int | None = None
    flip: bool = False
    threads: int = 4
    check: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("size", self.size), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")

    def open(self) -> FolderPixels:
        """List the images; none of them is read, unless they are to be checked.

        Raises:
            ConfigError: There are none, or their places make no sense.
        """
        path = existing(self.path)
        try:
            images = list_images(path)
            size = self.size or fitting_size(images)
            if self.check:
                images = without_damaged(images, size, self.threads)
        except (ValueError, OSError) as error:
            raise ConfigError(f"data.path: {error}") from None
        labels, names = labelled(images.labels, images.class_names, len(images), path)
        return FolderPixels(images, size, labels, names, self.flip, self.threads)


@dataclass(frozen=True)
class FolderPixels:
    """Image files, read as (B, 3, size, size) float32 in [-1, 1].

    Attributes:
        images: Where they lie.
        size: Pixels along a side.
        labels: (n,) int64.
        class_names: One for each class.
        flip: Whether half of the images are mirrored.
        threads: Threads that decode files.
    """

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

    @property
    def notes(self) -> tuple[str, ...]:
        """Which files are not used."""
        return self.images.notes

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Augmentation:
        """Which samples are mirrored, (batch,) bool."""
        return (sample_mirrored(batch, self.flip, rng),)

    def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
        """The samples of these numbers; see `Data.read`."""
        mirrored = augmentation[0] if self.flip else None
        if self.images.pixels is not None:
            return to_model(self.images.pixels[index_B], mirrored)
        paths = [self.images.root / self.images.paths[i] for i in index_B]
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                images = list(pool.map(read_image, paths, repeat(self.size)))
        except ValueError as error:
            raise ConfigError(
                f"data.path: {error} Mend or replace it, then rerun the command to resume. "
                f"(data.check finds such images before the first step.)"
            ) from None
        return to_model(np.stack(images), mirrored)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is; see `Data.fingerprint`."""
        sizes = self.images.sizes()
        parts = (f"{p} {s}" for p, s in zip(self.images.paths, sizes, strict=True))
        return fingerprint(self, sum(sizes), parts)
