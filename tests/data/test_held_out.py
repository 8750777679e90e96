"""Samples that are not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tread_ssm.data import EmojiData
from tread_ssm.data.held_out import split
from tread_ssm.errors import ConfigError


def test_every_sample_is_on_one_side_and_always_on_the_same() -> None:
    data = EmojiData(size=8).open()
    assert split(data, 0.0) == (data, None)
    training, held = split(data, 0.05)
    assert held is not None
    n = len(data.labels)
    assert len(held.labels) == round(0.05 * n)
    parts = [part.index for part in (training, held)]  # type: ignore[attr-defined]
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert np.array_equal(split(data, 0.05)[1].index, parts[1])  # type: ignore[union-attr]
    assert len(set(held.labels)) == 9  # at random, so of all classes


def test_a_part_reads_its_own_samples() -> None:
    data = EmojiData(size=8).open()
    _, held = split(data, 0.05)
    assert held is not None
    still = (torch.zeros(3, dtype=torch.bool),)
    index = np.array([7, 0, 3])
    own = held.index[index]  # type: ignore[attr-defined]
    assert torch.equal(held.read(index, still), data.read(own, still))
    assert np.array_equal(held.labels[index], data.labels[own])
    assert held.fingerprint() == data.fingerprint()


def test_shares_that_leave_nothing_are_refused() -> None:
    data = EmojiData(size=8).open()
    for share in (1e-9, 0.9999):
        with pytest.raises(ConfigError, match=r"data\.validation is"):
            split(data, share)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation is"):
            EmojiData(validation=share)
