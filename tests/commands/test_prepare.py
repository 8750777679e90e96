"""The command that makes latents: images of several kinds, interrupted, on two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.networks import save_autoencoder
from tread_ssm.commands import prepare
from tread_ssm.data import load_emoji
from tread_ssm.data.autoencoder import Autoencoder
from tread_ssm.data.images import read_image

ROOT = Path(__file__).parents[2]
PER_CLASS = 8
BROKEN = "b_dogs/003.jpg"
# Bits depend on the number of threads that share a sum.
ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SETTINGS = ("--resolution", "32", "--batch", "3", "--shard-size", "5", "--workers", "2", "--flip")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` in ImageNet's layout, one of them damaged, and an autoencoder in `vae`."""
    folder = tmp_path_factory.mktemp("parts")
    emoji, *_ = load_emoji(32)
    for c, name in enumerate(("a_cats", "b_dogs")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            image = Image.fromarray(emoji[c * PER_CLASS + i]).resize((40 + 7 * i, 48))
            image = image.convert("L") if i == 1 else image.convert("CMYK") if i == 2 else image
            suffix = "jpg" if i % 2 or i == 2 else "png"
            image.save(folder / "images" / name / f"{i:03d}.{suffix}")
    damaged = folder / "images" / BROKEN
    damaged.write_bytes(damaged.read_bytes()[:200])
    save_autoencoder(folder / "vae")
    return folder


def command(parts: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return [
        *(sys.executable, *(launcher if processes > 1 else ()), "scripts/prepare_latents.py"),
        *("--data", str(parts / "images"), "--vae", str(parts / "vae"), "--out", str(out)),
        *SETTINGS,
        *more,
    ]


def call(words: list[str], code: int = 0) -> str:
    done = subprocess.run(words, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def latents(parts: Path) -> Path:
    said = call(command(parts, parts / "latents"))
    assert f"{2 * PER_CLASS - 1} samples of 2 classes, moments (8, 16, 16)" in said
    assert "1 images could not be read" in said
    return parts / "latents"


def test_moments_are_the_autoencoders_and_the_damaged_image_is_left_out(
    parts: Path, latents: Path
) -> None:
    manifest = json.loads((latents / "manifest.json").read_text())
    assert manifest["class_names"] == ["a_cats", "b_dogs"]
    assert manifest["vae"] == str(parts / "vae")
    assert (manifest["scale"], manifest["resolution"], manifest["count"]) == (0.18215, 32, 15)
    assert [s["count"] for s in manifest["shards"]] == [5, 5, 4, 1]
    (line,) = (latents / "unreadable.txt").read_text().splitlines()
    assert line.startswith(f"{BROKEN}\t")
    assert np.load(latents / "labels.npy").tolist() == [0] * 8 + [1] * 7
    paths = sorted(p for p in (parts / "images").rglob("*.*") if not str(p).endswith(BROKEN))
    images = np.stack([read_image(path, 32) for path in paths])
    autoencoder = Autoencoder.load(str(parts / "vae"))
    for name, seen in (("moments", images), ("flip", images[:, :, ::-1].copy())):
        shards = [np.load(p) for p in sorted(latents.glob(f"{name}-*.npy"))]
        expected = autoencoder.encode(seen)
        stored = torch.from_numpy(np.concatenate(shards)).float()
        assert torch.allclose(stored, expected, rtol=2e-3, atol=2e-3)


def test_an_interrupted_command_goes_on_on_two_processes_to_the_same_folder(
    parts: Path, latents: Path
) -> None:
    out = parts / "cut"
    process = subprocess.Popen(command(parts, out), cwd=ROOT, env=ENV, stderr=subprocess.DEVNULL)
    while not (out / "parts" / "00000.json").is_file():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = out / "moments-00000.npy"
    written = first.stat().st_mtime_ns
    (out / "moments-00003.npy.tmp").write_bytes(b"half a shard")
    # What it may have finished before the kill; so both processes have shards to make.
    for late in (out / "manifest.json", *(out / "parts" / f"0000{i}.json" for i in (1, 2, 3))):
        late.unlink(missing_ok=True)
    call(command(parts, out, processes=2))
    assert first.stat().st_mtime_ns == written  # not made again
    (out / "moments-00003.npy.tmp").unlink(missing_ok=True)
    assert content(out) == content(latents)


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return prepare.main


def test_verify_finds_one_altered_byte(
    main: Callable[[list[str]], int],
    parts: Path,
    latents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = parts / "altered"
    shutil.copytree(latents, out)
    assert main(["--verify", "--out", str(out)]) == 0
    assert f"{out} is as it was written." in capsys.readouterr().out
    shard = bytearray((out / "flip-00001.npy").read_bytes())
    shard[-7] ^= 4
    (out / "flip-00001.npy").write_bytes(shard)
    (out / "labels.npy").write_bytes((out / "labels.npy").read_bytes()[:-1])
    assert main(["--verify", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "flip-00001.npy was altered" in said
    assert "labels.npy was altered" in said


def test_a_replaced_autoencoder_or_image_does_not_resume(
    main: Callable[[list[str]], int],
    parts: Path,
    latents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("images", "vae"):
        shutil.copytree(parts / name, tmp_path / name)
    words = [w.replace(str(parts), str(tmp_path)) for w in command(parts, parts / "out")[2:]]
    assert main(words) == 0
    assert content(tmp_path / "out").keys() == content(latents).keys()
    assert main(words) == 0
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    capsys.readouterr()
    assert main(words) == 2
    assert "begun with other settings (autoencoder_weights '" in capsys.readouterr().err
    weights.write_bytes(before)
    with (tmp_path / "images" / "a_cats" / "000.png").open("ab") as file:
        file.write(b" ")
    assert main(words) == 2
    assert "begun with other settings (image_files '" in capsys.readouterr().err


def test_what_cannot_be_prepared_is_refused(
    main: Callable[[list[str]], int],
    parts: Path,
    latents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(said: str, words: list[str]) -> None:
        assert main(words) == 2
        assert said in capsys.readouterr().err

    def arguments(out: Path, *more: str) -> list[str]:
        return command(parts, out, *more)[2:]

    refuse("settings (resolution 32 -> 48)", arguments(latents, "--resolution", "48"))
    refuse("needs sides of a multiple of 2", arguments(parts / "odd", "--resolution", "33"))
    refuse("--shard-size is 0", arguments(parts / "odd", "--shard-size", "0"))
    refuse("Give --data and --vae", ["--out", str(parts / "odd")])
    refuse("--flip encodes images", arguments(parts / "odd", "--from", "edm2"))
    refuse("holds no manifest.json", ["--verify", "--out", str(parts / "images")])
    (parts / "file").write_text("no folder")
    refuse("File exists", arguments(parts / "file"))
    (parts / "broken").mkdir()
    (parts / "broken" / "a.png").write_text("no image")
    words = arguments(parts / "none", "--data", str(parts / "broken"))
    refuse("Not one of 1 samples could be read", words)
