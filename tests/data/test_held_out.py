"""Samples that are not trained on."""

from __future__ import annotations

import numpy as np
import pytest

from tread_ssm.data import EmojiData
from tread_ssm.data.held_out import split
from tread_ssm.errors import ConfigError


def test_every_sample_is_on_one_side_and_always_on_the_same() -> None:
    labels = EmojiData(size=8).open().labels
    n = len(labels)
    training, held = split(n, 0.05)
    assert len(held) == round(0.05 * n)
    assert sorted(np.concatenate([training, held])) == list(range(n))
    assert np.array_equal(split(n, 0.05)[1], held)
    assert len(set(labels[held])) == 9  # at random, so of all classes
    training, held = split(7, 0.0)
    assert training.tolist() == list(range(7)) and len(held) == 0


def test_shares_that_leave_nothing_are_refused() -> None:
    for share in (1e-9, 0.9999):
        with pytest.raises(ConfigError, match=r"data\.validation is"):
            split(1906, share)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation is"):
            EmojiData(validation=share)
