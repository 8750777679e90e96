"""Weights and their description, from a folder and from the Hub's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tread_ssm
from tread_ssm.config.run import SampleConfig
from tread_ssm.data import PixelValues
from tread_ssm.diffusion import EDM
from tread_ssm.models import DiTConfig
from tread_ssm.pretrained import Description, export

CONFIG = DiTConfig(image_size=4, channels=3, n_classes=2, dim=16, depth=1, heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    description = Description(7, CONFIG, EDM(), ("a", "b"), PixelValues(), (), SampleConfig())
    export(run, CONFIG.build().state_dict(), description)
    return run


def test_a_folder_gives_the_model_and_its_description(folder: Path) -> None:
    model, run = tread_ssm.from_pretrained(str(folder))
    assert run.model == CONFIG and run.step == 7 and not model.training
    again, _ = tread_ssm.from_pretrained(folder)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["ema.safetensors", "config.json"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-30] + b"\xff")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        tread_ssm.from_pretrained(folder)


def test_what_is_neither_folder_nor_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="is no folder, and no name on the Hugging Face Hub"):
        tread_ssm.from_pretrained(folder / "none" / "there")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        tread_ssm.from_pretrained(folder)


def test_a_model_of_the_hub_comes_from_its_cache(folder: Path, tmp_path: Path) -> None:
    model, commit = tmp_path / "cache" / "models--some--dit", "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(folder, model / "snapshots" / commit)
    code = (
        "import tread_ssm\n"
        "print(tread_ssm.from_pretrained('some/dit')[1].step)\n"
        "for name, revision in (('some/other', None), ('some/dit', 'v2')):\n"
        "    try:\n"
        "        tread_ssm.from_pretrained(name, revision=revision)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    step, other, version = done.stdout.splitlines()
    assert step == "7"
    assert "some/other is no folder, and cannot be had from the Hugging Face Hub: " in other
    assert "some/dit is no folder, and cannot be had" in version
