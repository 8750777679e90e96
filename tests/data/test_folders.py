"""Folders of images as a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.data import FolderData, images, load_emoji
from tread_ssm.data.images import SUFFIXES, read_image
from tread_ssm.errors import ConfigError


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    images, *_ = load_emoji(32)
    for name, count in (("cat", 5), ("dog", 3)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(images[i]).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_a_folder_of_images_is_read_as_pixels(image_folder: Path) -> None:
    data = FolderData(path=str(image_folder), size=16, flip=True).open()
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0] * 5 + [1] * 3
    assert data.shape == (3, 16, 16)
    index = np.array([6, 0])
    x = data.read(index, (torch.tensor([True, False]),))
    images, *_ = load_emoji(32)
    for got, k, mirrored in zip(x, (1, 0), (True, False), strict=True):
        expected = images[k].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)) / 127.5 - 1
        seen = (got.flip(2) if mirrored else got).permute(1, 2, 0).numpy()
        assert np.abs(seen - expected).max() < 1.01 / 127.5  # Pillow rounds in each direction
    (image_folder / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"cat/0\.png is no readable image"):
        data.read(index, (torch.tensor([True, False]),))


def test_images_in_no_class_folder_have_no_class(image_folder: Path) -> None:
    data = FolderData(path=str(image_folder / "dog"), size=32).open()
    assert data.class_names == ()
    assert data.labels.tolist() == [0] * 3
    with pytest.raises(ConfigError, match=r"data\.path: .* holds no images"):
        (image_folder / "none").mkdir()
        FolderData(path=str(image_folder / "none"), size=32).open()


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_keep_the_order(image_folder: Path, threads: int) -> None:
    folder = image_folder
    data = FolderData(path=str(folder), size=8, threads=threads).open()
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
    index = np.random.default_rng(0).permutation(len(paths)).repeat(2)
    x = data.read(index, (torch.zeros(len(index), dtype=torch.bool),))
    expected = np.stack([read_image(folder / paths[i], 8) for i in index])
    shown = x.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown, expected)
    names = [paths[i].split("/")[0] for i in index]
    assert [data.class_names[k] for k in data.labels[index]] == names


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        FolderData(path="anywhere", size=0)
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        FolderData(path="anywhere", size=8, threads=0)


def test_the_fingerprint_notices_whatever_changes_the_data(image_folder: Path) -> None:
    def now() -> dict[str, Any]:
        return json.loads(
            json.dumps(FolderData(path=str(image_folder), size=8).open().fingerprint())
        )

    first = now()
    assert first == now()
    (image_folder / "notes.txt").write_text("no data")
    assert first == now()
    (image_folder / "cat" / "9.png").write_bytes((image_folder / "cat" / "0.png").read_bytes())
    assert now()["samples"] == first["samples"] + 1
    (image_folder / "cat" / "9.png").unlink()
    assert first == now()
    image = Image.new("RGB", (40, 40), "red")
    image.save(image_folder / "cat" / "0.png")
    replaced = now()
    assert {k for k in first if first[k] != replaced[k]} == {"bytes", "digest"}
    (image_folder / "cat").rename(image_folder / "wildcat")  # labels are shifted
    renamed = now()
    assert renamed["class_names"] == ["dog", "wildcat"]
    assert renamed["digest"] != replaced["digest"]


def test_class_names_that_no_picture_could_show_are_refused(image_folder: Path) -> None:
    (image_folder / "cat").rename(image_folder / "c\nat")
    with pytest.raises(ConfigError, match=r"names a class 'c\\nat'"):
        FolderData(path=str(image_folder), size=8).open()


def test_skipped_files_are_counted_and_named(image_folder: Path) -> None:
    assert FolderData(path=str(image_folder), size=8).open().notes == ()
    for name in ("cat/a.svg", "dog/notes.txt", "dog/b.TXT"):
        (image_folder / name).write_text("no image")
    (image_folder / "dog" / "gone.png").symlink_to("nowhere")
    others, links = FolderData(path=str(image_folder), size=8).open().notes
    assert others == (
        f"Left out: 3 of 12 files in {image_folder}, because their suffix is none of "
        f"{', '.join(SUFFIXES)} (2 .txt, 1 .svg): cat/a.svg, dog/b.TXT, dog/notes.txt."
    )
    assert links.startswith("Left out: 1 of 12 files") and links.endswith(": dog/gone.png.")


@pytest.mark.parametrize("kept", [True, False])
def test_a_check_decodes_small_sets_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(images, "_KEPT", 8 * 8 * 8 * 3 - 1)  # one byte less than they take
    options = {"path": str(image_folder), "size": 8, "flip": True}
    plain, checked = (FolderData(**options, check=check).open() for check in (False, True))
    assert plain.images.pixels is None and (checked.images.pixels is not None) == kept
    index, rng = np.array([7, 0, 3, 3]), torch.Generator().manual_seed(1)
    mirrored = plain.sample_augmentation(4, rng)
    assert 0 < mirrored[0].sum() < 4
    assert torch.equal(plain.read(index, mirrored), checked.read(index, mirrored))
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"")
    if kept:
        checked.read(index, mirrored)
    else:
        with pytest.raises(ConfigError, match="is no readable image"):
            checked.read(index, mirrored)


def test_a_check_leaves_out_what_is_damaged_and_names_it(image_folder: Path) -> None:
    whole = (image_folder / "cat" / "3.png").read_bytes()
    (image_folder / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "dog" / "notes.txt").write_text("a dog")
    loose = FolderData(path=str(image_folder), size=8).open()
    assert len(loose.labels) == 8
    data = FolderData(path=str(image_folder), size=8, check=True).open()
    assert data.labels.tolist() == [0] * 4 + [1] * 3 and data.class_names == ("cat", "dog")
    assert "cat/3.png" not in data.images.paths
    suffix, damaged = data.notes
    assert "1 of 9 files" in suffix and "dog/notes.txt" in suffix
    assert "1 of 9 files" in damaged and "cannot be read: cat/3.png" in damaged
    assert data.fingerprint()["samples"] == 7
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="none of the 8 images"):
        FolderData(path=str(image_folder), size=8, check=True).open()
