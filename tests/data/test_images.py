"""Folders of images, and the crop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tread_ssm.data.images import center_crop, list_images, read_image


def save(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    for name in ("n02/b.png", "n01/z.JPEG", "n01/deeper/a.jpg", "n10/c.png"):
        save(tmp_path / name)
    (tmp_path / "n01" / "notes.txt").write_text("no image")
    found = list_images(tmp_path)
    assert found.paths == ("n01/deeper/a.jpg", "n01/z.JPEG", "n02/b.png", "n10/c.png")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 2]
    assert found.class_names == ("n01", "n02", "n10")


def test_classes_may_be_links_as_in_subsets_of_imagenet(tmp_path: Path) -> None:
    for name in ("whole/n01/a.png", "whole/n02/b.png", "whole/n03/c.png"):
        save(tmp_path / name)
    (tmp_path / "part").mkdir()
    for name in ("n03", "n01"):
        (tmp_path / "part" / name).symlink_to(tmp_path / "whole" / name)
    found = list_images(tmp_path / "part")
    assert found.paths == ("n01/a.png", "n03/c.png")
    assert read_image(found.root / found.paths[1], 4).shape == (4, 4, 3)


def test_images_alone_have_no_classes(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / "a.png")
    found = list_images(tmp_path)
    assert found.paths == ("a.png", "b.png")
    assert found.labels is None
    assert found.class_names == ()


def test_folders_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        list_images(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no images"):
        list_images(tmp_path)
    save(tmp_path / "a.png")
    save(tmp_path / "cat" / "b.png")
    with pytest.raises(ValueError, match="1 images beside its sub-folders and 1 inside"):
        list_images(tmp_path)


@pytest.mark.parametrize("size", [(8, 8), (8, 13), (31, 8), (40, 70), (5, 9)])
def test_the_crop_is_the_central_square(size: tuple[int, int]) -> None:
    # A ramp from left to right and one from top to bottom: the centre keeps the middle grey.
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, x * 0], axis=2).astype(np.uint8))
    cut = center_crop(image, 8).astype(float)
    assert cut.shape == (8, 8, 3)
    assert abs(cut[..., 0].mean() - 127.5) < 12
    assert abs(cut[..., 1].mean() - 127.5) < 12
    short = min(size)
    spread = cut[:, -1, 0].mean() - cut[:, 0, 0].mean()
    assert abs(spread / 255 - short / size[0]) < 0.16  # the square's share of the width


def test_halving_averages_areas() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cut = center_crop(Image.fromarray(pixels), 8).astype(float)
    areas = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(cut - areas).max() <= 2  # Pillow rounds at each halving


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    save(path, (20, 10), mode)
    assert read_image(path, 8).shape == (8, 8, 3)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half.jpg", "text.png", "gone.png"):
        with pytest.raises(ValueError, match=f"{name} is no readable image"):
            read_image(tmp_path / name, 8)
