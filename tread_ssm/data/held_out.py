"""A part of the samples that is not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

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


def split(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples to train on, in their order, and of those held out, at random.

    Args:
        n: Samples of the data set.
        share: Of them, that is held out; 0: none.

    Raises:
        ConfigError: One of the two would hold no sample.
    """
    held = round(n * share)
    if share > 0 and not 0 < held < n:
        raise ConfigError(
            f"data.validation is {share:g}, which holds out {held} of {n} samples; at least one "
            f"must be held out, and one trained on."
        )
    order = torch.randperm(n, generator=generator(0, n, "held out")).numpy()
    return np.sort(order[held:]), order[:held]
