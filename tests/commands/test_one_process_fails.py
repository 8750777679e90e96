"""Of two processes one fails: its reason is said, and the other does not wait for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tread_ssm.config.run import SampleConfig
from tread_ssm.data import PixelValues, load_emoji
from tread_ssm.diffusion import EDM
from tread_ssm.models import DiMConfig
from tread_ssm.pretrained import Description, export

ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    config = DiMConfig(image_size=8, channels=3, n_classes=4, dim=32, depth=3, pads=1)
    torch.manual_seed(0)
    description = Description(
        step=0,
        model=config,
        objective=EDM(),
        class_names=tuple("abcd"),
        values=PixelValues(),
        routes=(),
        sample=SampleConfig(steps=2),
    )
    export(folder, config.build().state_dict(), description)
    return folder


def on_two(script: str, *arguments: str | Path) -> str:
    """What the command says on two gloo processes, when it fails."""
    command = [sys.executable, *LAUNCHER, str(ROOT / "scripts" / script), "--device", "cpu"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,  # far below the days that a process may wait for a slow one
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_sampling_ends_where_the_second_process_cannot_write(run: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "set.npz", tmp_path / "set.npz.parts"
    options = ["--run", run, "--num", "8", "--batch", "2", "--npz", out]
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), "--device", "cpu", *options]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    # As if it had been killed, with a folder where the second batch is to be written.
    out.unlink()
    (parts / "00000002-00000003.npy").mkdir(parents=True)
    (tmp_path / "set.npz.json").rename(parts / "record.json")
    message = on_two("sample.py", *options)
    assert "error (process 1): " in message and "00000002-00000003.npy is no file" in message
    assert not out.exists()


def test_evaluating_ends_where_the_second_process_cannot_read(tmp_path: Path) -> None:
    pixels, folder = load_emoji(8)[0][:100], tmp_path / "set"
    folder.mkdir()
    np.savez(tmp_path / "reference.npz", arr_0=pixels)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    (folder / "095.png").write_bytes(b"no image")
    sets = ["--samples", folder, "--reference", tmp_path / "reference.npz", "--metrics", "kid"]
    message = on_two("evaluate.py", "--extractor", "emoji", "--batch", "16", *sets)
    assert "error (process 1): " in message and "095.png is no readable image" in message
    assert not list(tmp_path.glob("*.json"))
