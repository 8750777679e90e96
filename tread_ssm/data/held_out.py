"""A part of the samples that is not trained on.

Shape legend: B batch, n samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tread_ssm.data.dataset import Augmentation, Data
from tread_ssm.data.values import Values
from tread_ssm.errors import ConfigError
from tread_ssm.randomness import generator


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What every kind of data can be told.

    Attributes:
        validation: Share of the samples that is not trained on. Every `train.validate_every` steps
            the dense network's loss on them is logged. The same samples whatever the seed.
    """

    validation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ValueError(
                f"validation is {self.validation}; it must satisfy 0 <= validation < 1."
            )


@dataclass(frozen=True)
class Part:
    """Some samples of a data set, as a data set.

    Attributes:
        whole: The data set.
        index: (n,) int64, numbers of the samples.
    """

    whole: Data
    index: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64."""
        return self.whole.labels[self.index]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the whole, though a class may have no sample here."""
        return self.whole.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.whole.shape

    @property
    def values(self) -> Values:
        """What its numbers mean."""
        return self.whole.values

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the whole."""
        return self.whole.notes

    def sample_augmentation(self, batch: int, rng: torch.Generator) -> Augmentation:
        """As of the whole."""
        return self.whole.sample_augmentation(batch, rng)

    def read(self, index_B: np.ndarray, augmentation: Augmentation) -> Tensor:
        """The samples of these numbers; see `Data.read`."""
        return self.whole.read(self.index[index_B], augmentation)

    def fingerprint(self) -> dict[str, Any]:
        """Of the whole."""
        return self.whole.fingerprint()


def split(data: Data, share: float) -> tuple[Data, Data | None]:
    """What to train on, and the samples held out (in random order); None where `share` is 0.

    Raises:
        ConfigError: One of the two would hold no sample.
    """
    if share == 0:
        return data, None
    n = len(data.labels)
    held = round(n * share)
    if not 0 < held < n:
        raise ConfigError(
            f"data.validation is {share:g}, which holds out {held} of {n} samples; at least one "
            f"must be held out, and one trained on."
        )
    order = torch.randperm(n, generator=generator(0, n, "held out")).numpy()
    return Part(data, np.sort(order[held:])), Part(data, order[:held])
