"""Small versions of the commands that write: what they are given, and what they leave.

A command is right when its result has the digest of an uninterrupted run and nothing temporary
is left beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.networks import save_autoencoder
from tests.reliability.server import Server, Trial, python
from tread_ssm.data import load_emoji

TRAIN = """
name: tiny
data: {kind: emoji, size: 8, flip: true}
model: {kind: dim, image_size: 8, channels: 3, n_classes: 9, dim: 16, depth: 3, pads: 1}
objective: {kind: flow}
routing: {routes: [{start: 0, stop: 2, drop: 0.5}]}
train: {steps: 12, batch_size: 4, log_every: 3, save_every: 4, posthoc_ema: {every: 4}}
sample: {every: 6, classes: 2, per_class: 2, steps: 2}
"""
IMAGES = 6
# What tells the time or the speed differs from run to run.
_CHANGING = ("seconds", "images_per_second")


@dataclass(frozen=True)
class Command:
    """One command line and its result, both relative to a folder that `prepare` has filled.

    Attributes:
        name: for the report.
        argv: as of `python SCRIPT ...`.
        results: files and folders that it leaves.
    """

    name: str
    argv: tuple[str, ...]
    results: tuple[str, ...]


COMMANDS = (
    Command(
        "train",
        python("scripts/train.py", "--config", "tiny.yaml"),
        # Not the checkpoints: a stop by a signal leaves one more.
        tuple(f"runs/tiny/{n}" for n in ("ema.safetensors", "config.yaml", "samples")),
    ),
    Command(
        "sample",
        python(
            *("scripts/sample.py", "--run", "given/tiny", "--num", 6, "--batch", 2),
            *("--npz", "set.npz", "--steps", 2, "--device", "cpu"),
        ),
        ("set.npz", "set.npz.json"),
    ),
    Command(
        "prepare",
        python(
            *("scripts/prepare_latents.py", "--data", "images", "--vae", "vae", "--out", "latents"),
            *("--resolution", 16, "--batch", 2, "--shard-size", 3, "--workers", 1),
            *("--device", "cpu"),
        ),
        ("latents",),
    ),
    Command(
        "cache",
        python(
            *("scripts/cache_features.py", "--data", "images", "--library", "transformers"),
            *("--model", "vit", "--size", 16, "--out", "features", "--batch", 2),
            *("--shard-size", 3, "--workers", 1, "--device", "cpu"),
        ),
        ("features",),
    ),
    Command(
        "average",
        python("scripts/average.py", "--run", "given/tiny", "--width", 0.1, "--out", "averaged"),
        ("averaged",),
    ),
    Command(
        "evaluate",
        python(
            *("scripts/evaluate.py", "--samples", "samples.npz", "--reference", "real.npz"),
            *("--extractor", "emoji", "--metrics", "fid,kid", "--save-reference", "statistics.npz"),
            *("--out", "scores.json", "--device", "cpu"),
        ),
        ("scores.json", "statistics.npz"),
    ),
    Command(
        "sweep",
        python(
            *("scripts/evaluate.py", "--run", "given/tiny", "--sweep", "guidance=1,2"),
            *("--num", 66, "--steps", 1, "--extractor", "emoji", "--metrics", "fid"),
            *("--reference", "real.npz", "--out", "sweep.json", "--device", "cpu"),
        ),
        ("sweep.json",),
    ),
)


def prepare(server: Server, folder: Path) -> Path:
    """Fill a folder with what the commands are given: a configuration, a run, images, a VAE."""
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TRAIN)
    argv = (*COMMANDS[0].argv, "out=given")
    outcome = server.run(Trial(argv, str(folder)))
    assert outcome.code == 0, outcome.err
    images, labels, _ = load_emoji(16)
    for i in range(IMAGES):
        path = folder / "images" / f"class{labels[i * 7]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i * 7]).save(path)
    np.savez(folder / "real.npz", arr_0=load_emoji(8)[0][:80])
    np.savez(folder / "samples.npz", arr_0=load_emoji(8)[0][80:170])
    save_autoencoder(folder / "vae")
    _save_vision_transformer(folder / "vit")
    return folder


def copy(prepared: Path, to: Path) -> Path:
    """A fresh copy of a prepared folder."""
    shutil.copytree(prepared, to)
    return to


def _save_vision_transformer(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**size, patch_size=4, image_size=16)).save_pretrained(folder)


def digest(folder: Path, results: tuple[str, ...]) -> str:
    """A checksum over names and contents of the results, but for times."""
    total = hashlib.sha256()
    for path in sorted(_files(folder, results)):
        total.update(str(path.relative_to(folder)).encode())
        total.update(_contents(path))
    return total.hexdigest()


def left_over(folder: Path) -> list[str]:
    """Names below a folder that look temporary.

    A lock file may stay: its holder is gone.
    """
    signs: tuple[Callable[[str], bool], ...] = (
        lambda n: n.startswith("tmp-"),
        lambda n: ".tmp" in n,
        lambda n: n.endswith(".parts"),
    )
    found = [p for p in folder.rglob("*") if any(sign(p.name) for sign in signs)]
    return [str(p.relative_to(folder)) for p in found]


def _files(folder: Path, results: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for name in results:
        path = folder / name
        if path.is_dir():
            found += [p for p in path.rglob("*") if p.is_file()]
        elif path.is_file():
            found.append(path)
    return found


def _contents(path: Path) -> bytes:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([_steady(row) for row in rows]).encode()
    if path.suffix == ".json":
        return json.dumps(_steady(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".pt":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return repr(_tensors(state)).encode()
    return path.read_bytes()


def _steady(value: object) -> object:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in _CHANGING}
    return [_steady(v) for v in value] if isinstance(value, list) else value


def _tensors(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    return [_tensors(v) for v in value] if isinstance(value, (list, tuple)) else value
