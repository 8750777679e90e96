"""Sizes and classes that a configuration leaves open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tread_ssm.config.run import load_config, load_with_notes
from tread_ssm.errors import ConfigError


def folder(root: Path, size: tuple[int, int], *classes: str) -> Path:
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("RGB", size, (i, 9, 9)).save(root / name / "a.png")
    return root


def test_a_folders_sizes_and_classes_are_found_and_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", (50, 30), "cat", "dog")
    config, notes = load_with_notes("folder", [f"data.path={path}"])
    assert config.data.size == 28  # type: ignore[union-attr]
    assert (config.model.image_size, config.model.channels, config.model.n_classes) == (28, 3, 2)
    assert "2 images" in notes[0] and "28 x 28" in notes[0]
    assert "model.n_classes 2 (cat, dog)" in notes[1]


@pytest.mark.parametrize(("shorter", "size"), [(3000, 64), (64, 64), (33, 32), (5, 8)])
def test_the_size_is_the_usual_shorter_side_in_fours(
    tmp_path: Path, shorter: int, size: int
) -> None:
    path = folder(tmp_path / "p", (shorter, 2 * shorter), "cat")
    (path / "cat" / "b.png").write_text("damaged")
    assert load_config("folder", [f"data.path={path}"]).model.image_size == size


def test_what_is_given_is_kept_and_null_is_open(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", (50, 30), "cat", "dog")
    given = [f"data.path={path}", "data.size=16", "model.n_classes=0"]
    config, notes = load_with_notes("folder", given)
    assert (config.model.image_size, config.model.n_classes) == (16, 0)
    assert len(notes) == 1
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((6, 12, 12, 1), np.uint8), arr_1=np.arange(6) % 3)
    data = f"data={{kind: array, path: {tmp_path / 'a.npz'}}}"
    left = [f"model.{k}=null" for k in ("image_size", "channels", "n_classes")]
    model = load_config("quickstart", [data, *left]).model
    assert (model.image_size, model.channels, model.n_classes) == (12, 1, 3)


def test_without_data_a_plan_can_be_made(tmp_path: Path) -> None:
    config, notes = load_with_notes("folder", [f"data.path={tmp_path / 'gone'}"])
    assert (config.model.image_size, config.model.n_classes, notes) == (64, 0, ())
    with pytest.raises(ConfigError, match="holds no images"):
        load_config("folder", [f"data.path={tmp_path}"])
