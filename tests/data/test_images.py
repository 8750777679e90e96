"""Folders of images, and the crop."""

from __future__ import annotations

import os
import resource
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


GREY = np.tile(np.linspace(0, 1, 16), (16, 1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_seen_as_eight(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((GREY * 65535).astype(np.uint16)).save(path)
    cut = read_image(path, 16)
    assert np.abs(cut - (GREY * 255)[..., None]).max() <= 1


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    for name, values in (("f", GREY.astype(np.float32)), ("i", np.full((9, 9), 70000, np.int32))):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        with pytest.raises(ValueError, match=rf"{name}\.tif .* expected 8 or 16 bits"):
            read_image(tmp_path / f"{name}.tif", 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((40, 40, 40, 255), (0, 0, 8, 16))
    if mode != "P":
        image.paste((0, 0, 0, 128), (0, 0, 16, 4))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == mode
    cut = read_image(tmp_path / "a.png", 16).astype(int)
    assert (cut[8:, 8:] == 255).all()
    assert np.abs(cut[8:, :8] - 40).max() <= 1
    if mode != "P":
        assert np.abs(cut[:4, 8:] - 127).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_their_camera_said(orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    upright = Image.fromarray(pixels)
    turns = {
        **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
        **{6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"},  # what undoes the camera's turn
    }
    name = turns.get(orientation)
    stored = upright if name is None else upright.transpose(Image.Transpose[name])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", 16), pixels)


def test_cmyk_and_palettes_keep_their_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    image.save(tmp_path / "a.gif")
    for name in ("a.jpg", "a.png", "a.gif"):
        cut = read_image(tmp_path / name, 8).astype(int)
        assert np.abs(cut - np.array([200, 40, 90])).max() <= 3, name


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 1000), (20000, 1), (1, 20000), (3, 300)])
def test_tiny_and_long_pictures_keep_their_colour(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (200, 40, 90)).save(tmp_path / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20), hard))
    try:
        cut = read_image(tmp_path / "a.png", 256)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert cut.shape == (256, 256, 3)
    assert (cut == (200, 40, 90)).all()


def test_only_the_ends_of_a_strip_are_left_out() -> None:
    middle = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    strip = np.zeros((4, 1000, 3), dtype=np.uint8)
    strip[:, 498:502] = middle
    assert np.array_equal(center_crop(Image.fromarray(strip), 4), middle)
    turned = Image.fromarray(strip.transpose(1, 0, 2))
    assert np.array_equal(center_crop(turned, 4), middle.transpose(1, 0, 2))


def test_hidden_files_and_pipes_are_no_data(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png", ".hidden/c.png", "cat/._a.png", "cat/.cache/d.png"):
        save(tmp_path / name)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = list_images(tmp_path)
    assert found.paths == ("cat/a.png", "dog/b.png")
    assert found.class_names == ("cat", "dog")
    assert found.skipped == ("cat/pipe.png", "dog/gone.png", "dog/notes.txt")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "2.png")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    found = list_images(tmp_path)
    assert found.paths == ("a/1.png", "a/other/2.png", "b/2.png", "b/other/1.png")


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_whatever_is_damaged_is_a_sentence(suffix: str, tmp_path: Path) -> None:
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(whole[: rng.integers(0, len(whole) + 1)])
        for i in rng.integers(0, max(1, len(content)), 4):
            content[i : i + 1] = rng.bytes(1)
        path.write_bytes(content)
        try:
            assert read_image(path, 8).shape == (8, 8, 3)
        except ValueError as error:
            assert "is no readable image" in str(error)
            refused += 1
    assert refused > 5


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half.jpg", "text.png", "gone.png"):
        with pytest.raises(ValueError, match=f"{name} is no readable image"):
            read_image(tmp_path / name, 8)
