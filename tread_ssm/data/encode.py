"""A folder of images as what an autoencoder, or another network, makes of them.

Shape legend: B batch, C latent channels, h, w latent places, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tread_ssm.data.images import ImageFolder, read_image
from tread_ssm.data.prepare import Encoded
from tread_ssm.data.values import LatentValues


class Encoder(Protocol):
    """An autoencoder, or what stands in its place."""

    @property
    def factor(self) -> int:
        """Pixels along the side of a place."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def values(self, name: str) -> LatentValues:
        """What the numbers mean, under the name that the manifest gets."""
        ...

    def encode(self, images_BHWC: Tensor) -> Tensor:
        """(B, 2C, h, w) of uint8 images (B, H, W, 3)."""
        ...


class EncodedImages:
    """A folder of images, seen by an autoencoder."""

    def __init__(
        self,
        images: ImageFolder,
        vae: str,
        autoencoder: Encoder,
        *,
        resolution: int,
        flip: bool,
        batch: int,
        workers: int,
        autocast: torch.dtype | None,
    ) -> None:
        """Nothing is read yet.

        Args:
            images: The folder.
            vae: The autoencoder's name, for the manifest.
            autoencoder: The autoencoder.
            resolution: Pixels along a side.
            flip: Encode the mirrored images as well.
            batch: Images encoded at once.
            workers: Threads that decode files.
            autocast: Type to compute in. None: full precision.

        Raises:
            ValueError: `resolution` does not suit the autoencoder.
        """
        if resolution < 1 or resolution % autoencoder.factor:
            raise ValueError(
                f"The images would be {resolution} x {resolution} pixels; {vae} needs sides of a "
                f"multiple of {autoencoder.factor}."
            )
        self.labels, self.class_names = images.labels, images.class_names
        self.values, self.resolution = autoencoder.values(vae), resolution
        self._images, self._autoencoder, self._autocast = images, autoencoder, autocast
        self._flip, self._batch, self._workers = flip, batch, workers

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def read(self, part: range) -> Iterator[Encoded]:
        """The moments of these images; files are decoded while the batch before is encoded."""
        groups = [part[i : i + self._batch] for i in range(0, len(part), self._batch)]
        with ThreadPoolExecutor(self._workers) as pool:

            def submit(group: range) -> list[Future[np.ndarray | str]]:
                return [pool.submit(self._image, i) for i in group]

            waiting = [submit(group) for group in groups[:1]]
            for k, group in enumerate(groups):
                if k + 1 < len(groups):
                    waiting.append(submit(groups[k + 1]))
                yield self._encode(group, [future.result() for future in waiting.pop(0)])

    def _image(self, i: int) -> np.ndarray | str:
        """The image, or why there is none."""
        assert self.resolution is not None
        try:
            return read_image(self._images.root / self._images.paths[i], self.resolution)
        except ValueError as error:
            return str(error)

    def _encode(self, group: range, read: Sequence[np.ndarray | str]) -> Encoded:
        failed = [(i, r) for i, r in zip(group, read, strict=True) if isinstance(r, str)]
        good = [r for r in read if not isinstance(r, str)]
        if not good:
            return Encoded(torch.zeros(0), torch.zeros(0) if self._flip else None, tuple(failed))
        images = torch.from_numpy(np.stack(good))
        device = self._autoencoder.device.type
        half = self._autocast is not None
        with torch.autocast(device, self._autocast) if half else nullcontext():
            straight = self._autoencoder.encode(images)
            mirrored = self._autoencoder.encode(images.flip(2)) if self._flip else None
        return Encoded(straight, mirrored, tuple(failed))
