"""Sizes and classes that a configuration leaves open."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tread_ssm.config.run import load_config, load_with_notes
from tread_ssm.config.shipped import shipped
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiTConfig


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
    assert [note[:8] for note in notes] == ["2 images", "As in th"] and "data.size" not in notes[0]
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


@pytest.mark.parametrize("name", [n for n in shipped() if n.startswith(("dim", "folder", "quick"))])
def test_every_dim_becomes_a_dit_by_one_override(name: str) -> None:
    before = load_config(name)
    config, notes = load_with_notes(name, ["model.kind=dit"])
    assert isinstance(config.model, DiTConfig)
    for key in ("dim", "depth", "patch", "image_size", "channels", "n_classes"):
        assert getattr(config.model, key) == getattr(before.model, key)
    assert config.routing == before.routing and config.train == before.train
    width = config.model.dim // config.model.heads
    assert width <= 64 and width % 4 == 0 and config.model.dim % config.model.heads == 0
    assert f"model.heads is {config.model.heads}: heads of {width} channels." in notes
    held = yaml.safe_load(shipped()[name].read_text())["model"]
    foreign = [key for key in held if key not in {f.name for f in fields(DiTConfig)}]
    said = f"model.kind=dit does not know {', '.join(foreign)} of {shipped()[name]}, left out."
    assert [note for note in notes if "does not know" in note] == ([said] if foreign else [])


@pytest.mark.parametrize(("dim", "heads"), [(96, 2), (384, 6), (1024, 16), (16, 1), (68, 17)])
def test_heads_are_as_few_as_64_channels_allow(dim: int, heads: int) -> None:
    given = ["model.kind=dit", f"model.dim={dim}"]
    config = load_config("quickstart", given)
    assert isinstance(config.model, DiTConfig) and config.model.heads == heads
    config = load_config("quickstart", [*given, "model.heads=4"])
    assert isinstance(config.model, DiTConfig) and config.model.heads == 4
