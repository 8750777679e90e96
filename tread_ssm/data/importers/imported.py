"""A source that reads one sample at a time, and what all formats share.

Shape legend: C latent channels, h, w latent places, B batch, n samples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch

from tread_ssm.data.dataset import MOST_CLASSES
from tread_ssm.data.prepare import Encoded
from tread_ssm.data.values import LatentValues

SCALE = 0.18215  # of Stable Diffusion's autoencoders
CERTAIN = -30.0  # a log-variance that leaves nothing to chance
_BATCH = 256


@dataclass(frozen=True)
class Imported:
    """Another project's latents; see `tread_ssm.data.prepare.Source`.

    Attributes:
        n: Samples.
        labels: (n,) int64. None: no classes.
        one: Number -> moments (2C, h, w) float32, means, then log-variances. Raises ValueError.
        values: What the numbers that a model sees mean, and which autoencoder made the latents.
        notes: Sentences that the user should see.
        resolution: Pixels along a side of the images. None: not known.
        mirrored: Number -> moments of the mirrored image, like `one`. None: the project has none.
    """

    n: int
    labels: np.ndarray | None
    one: Callable[[int], np.ndarray]
    values: LatentValues
    notes: tuple[str, ...] = ()
    resolution: int | None = None
    mirrored: Callable[[int], np.ndarray] | None = None

    def __len__(self) -> int:
        """n."""
        return self.n

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers, since these formats hold no names."""
        return () if self.labels is None else tuple(map(str, range(int(self.labels.max()) + 1)))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(2C, h, w) of the first sample, and so of all."""
        return self.one(0).shape

    def read(self, part: range) -> Iterator[Encoded]:
        """The samples of these numbers.

        Raises:
            ValueError: One cannot be used.
        """
        for i in range(0, len(part), _BATCH):
            numbers = part[i : i + _BATCH]
            mirrored = None if self.mirrored is None else self._stack(self.mirrored, numbers)
            yield Encoded(self._stack(self.one, numbers), mirrored)

    def _stack(self, one: Callable[[int], np.ndarray], numbers: range) -> torch.Tensor:
        read = [one(k) for k in numbers]
        for k, moments in zip(numbers, read, strict=True):
            if moments.shape != self.shape:
                raise ValueError(
                    f"Sample {k} has moments of shape {moments.shape}, sample 0 of "
                    f"{self.shape}; all must agree."
                )
        return torch.from_numpy(np.stack(read))


def label_array(labels: Iterable[int], where: str) -> np.ndarray:
    """Class numbers as (n,) int64.

    Raises:
        ValueError: One is negative, or larger than any number of classes.
    """
    found = list(labels)
    wrong = [label for label in found if not 0 <= label < MOST_CLASSES]
    if wrong:
        raise ValueError(
            f"{where}: a label is {wrong[0]}; they must be at least 0 and below {MOST_CLASSES:,}."
        )
    return np.array(found, dtype=np.int64)


def load(file: Path | bytes, where: str) -> np.ndarray:
    """The numbers of an .npy file or of its bytes, floats as float32.

    Args:
        file: A path, or the file's content.
        where: Names it in messages.

    Raises:
        ValueError: It is damaged or holds no numbers.
    """
    try:
        opened: IO[bytes] = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
        with opened:
            array: np.ndarray = np.load(opened, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise ValueError(f"{where} is no readable .npy ({error}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{where} holds no numbers.")
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def halves(array: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Both halves (C, h, w) of (2C, h, w) float32.

    Raises:
        ValueError: The array has another shape or type.
    """
    if array.ndim != 3 or array.shape[0] % 2 or array.dtype != np.float32:
        raise ValueError(
            f"{where} is {array.dtype} of shape {array.shape}; expected floats of shape "
            f"(2 * channels, height, width), means first."
        )
    first, second = np.split(array, 2)
    return first, second


def from_moments(array: np.ndarray, where: str) -> np.ndarray:
    """Means and log-variances as they are.

    Raises:
        ValueError: They cannot be that.
    """
    if bool((halves(array, where)[1] >= 0).all()):
        raise ValueError(
            f"The second half of {where} is nowhere below 0; expected log-variances, but these "
            f"seem to be standard deviations, which the formats edm2 and repa have."
        )
    return array


def from_deviations(array: np.ndarray, where: str) -> np.ndarray:
    """Means and standard deviations as moments.

    Raises:
        ValueError: They cannot be that.
    """
    mean, deviation = halves(array, where)
    if not bool((deviation > 0).all()):
        raise ValueError(
            f"The second half of {where} reaches {deviation.min():g}; expected standard "
            f"deviations, which are above 0."
        )
    return np.concatenate([mean, 2 * np.log(deviation)])


def from_sample(sample: np.ndarray, where: str, scale: float) -> np.ndarray:
    """Moments of a posterior of which only this sample (C, h, w), times `scale`, is left.

    Raises:
        ValueError: The sample has another shape or type.
    """
    if sample.ndim != 3 or sample.dtype != np.float32:
        raise ValueError(
            f"{where} is {sample.dtype} of shape {sample.shape}; expected floats of shape "
            f"(channels, height, width)."
        )
    mean = sample / np.float32(scale)
    return np.concatenate([mean, np.full_like(mean, CERTAIN)])
