"""Grids of samples as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.data import EmojiData, LatentValues, PixelValues
from tread_ssm.sampling.image_grid import save_grid, spread, to_uint8


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    data = EmojiData(size=16).open()
    index = np.arange(50)
    x = data.read(index, (torch.zeros(50, dtype=torch.bool),))
    assert np.array_equal(to_uint8(x, data.values), data.images[index])  # type: ignore[union-attr]


def test_values_out_of_range_are_clipped() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]).reshape(5, 1, 1, 1)
    assert to_uint8(x, PixelValues())[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(x, PixelValues()).shape == (5, 1, 1, 3)


def test_latents_are_stretched() -> None:
    shown = to_uint8(torch.randn(3, 4, 8, 8), LatentValues())
    assert shown.shape == (3, 8, 8, 3)
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize("size", [16, 100])
def test_a_row_of_the_picture_is_a_class(tmp_path: Path, size: int) -> None:
    rows, columns = 3, 4
    images = np.zeros((rows * columns, size, size, 3), dtype=np.uint8)
    for row in range(rows):
        images[row * columns : (row + 1) * columns, ..., row] = 200
    save_grid(tmp_path / "new" / "grid.png", images, ["a", "much longer", "c"])
    picture = np.asarray(Image.open(tmp_path / "new" / "grid.png")).astype(int)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["grid.png"]
    cell = max(1, 64 // size) * size
    for row in range(rows):
        colour = np.zeros(3)
        colour[row] = 200
        middle = picture[4 + row * (cell + 4) + cell // 2]
        assert (middle == colour).all(axis=1).sum() == columns * cell


def test_rows_are_spread_over_the_classes() -> None:
    assert spread(9, 10) == list(range(9))
    assert spread(1000, 4) == [0, 333, 666, 999]
    assert spread(5, 1) == [0]
