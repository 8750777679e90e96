"""From a folder of images to a comparison and a distance: the five commands that the docs name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tread_ssm.__main__ import main
from tread_ssm.data import load_emoji

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SMALLER = {
    "train": "model.dim=16 model.patch=8 train.steps=4 train.save_every=2 train.batch_size=8 "
    "train.threads=1 train.validate_every=2 sample.every=2 sample.steps=1 sample.per_class=2",
    "compare": "",
    "reference": "--device cpu",
    "evaluate": "--device cpu --num 120 --steps 1",
}


def commands() -> list[list[str]]:
    """Words behind `tread-ssm`, of the block that trains on photos/."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [b for b in blocks if "train --config folder" in b]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def test_five_commands_and_no_edited_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, names = load_emoji(32)
    for label in (1, 3):
        folder = tmp_path / "photos" / names[label] / "deeper"
        folder.mkdir(parents=True)
        for i, k in enumerate(np.flatnonzero(labels == label)[:60]):
            Image.fromarray(images[k]).resize((60, 40 + i % 7)).save(folder / f"{i}.png")
        (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
        (folder / "about.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)

    assert len(commands()) == 5
    for name, *words in commands():
        small = ["emoji" if word.startswith("timm:") else word for word in words]
        small += ["data.size=16"] if name == "train" else []
        assert main([name, *small, *SMALLER[name].split()]) == 0
        AcceleratorState._reset_state(reset_partial_state=True)

    said = capsys.readouterr()
    assert "120 images of 16 x 16, for fid" in said.out
    assert "(2 .txt)" in said.err and "Left out: 2 of 124 files" in said.err
    assert re.search(r"\| photos \| 120 \| \d", said.out)
    for run in ("photos", "photos_dense"):
        assert (tmp_path / "runs" / run / "report.html").is_file()
    table = (tmp_path / "runs" / "comparison" / "comparison.md").read_text()
    assert "| photos | 1 | 50% past blocks 2 to 5 |" in table
    assert "| photos\\_dense | 1 | none | 100% |" in table and "| validation loss |" in table
