"""The embedded images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tread_ssm.data import EmojiData, load_emoji
from tread_ssm.randomness import generator


def test_the_embedded_emoji() -> None:
    images, labels, names = load_emoji(32)
    assert images.shape == (1906, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len(names) == 9
    assert set(labels) == set(range(9))
    small, *_ = load_emoji(16)
    expected = images.reshape(1906, 16, 2, 16, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(small - expected).max() <= 0.5
    with pytest.raises(ValueError, match="size is 20"):
        load_emoji(20)


def test_pixels_are_read_in_range_and_mirrored_half_the_time() -> None:
    plain = EmojiData(size=8).open()
    data = EmojiData(size=8, flip=True).open()
    index = np.arange(400)
    (drawn,) = data.sample_augmentation(400, generator(0, 0, "step"))
    straight, x = (
        plain.read(index, plain.sample_augmentation(400, generator(0, 0, "step"))),
        data.read(index, (drawn,)),
    )
    assert x.shape == (400, 3, 8, 8)
    assert x.dtype == torch.float32
    assert straight.min() == -1
    assert straight.max() == 1
    assert 150 < int(drawn.sum()) < 250
    assert torch.equal(x[drawn], straight[drawn].flip(3))
    assert torch.equal(x[~drawn], straight[~drawn])


def test_the_fingerprint_tells_sizes_apart_and_nothing_else() -> None:
    small = EmojiData(size=8).open().fingerprint()
    assert small == EmojiData(size=8, flip=True).open().fingerprint()
    assert (small["samples"], small["shape"], len(small["class_names"])) == (1906, [3, 8, 8], 9)
    assert EmojiData(size=16).open().fingerprint() != small
