"""`tread-ssm prepare --from`: other projects' latents, from the command line to training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.foreign_latents import DEVIATION, LABELS, MEAN, SIDE, WRITERS, fast_dit
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
VAES = {
    "fast-dit": "stabilityai/sd-vae-ft-ema",
    "maskdit": None,
    "tread": None,
    "edm2": "stabilityai/sd-vae-ft-mse",
    "repa": "stabilityai/sd-vae-ft-mse",
    "va-vae": None,
}
SCALES = {"edm2": 0.5, "va-vae": 1.0}


def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tread_ssm", name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each format's result goes."""
    return tmp_path_factory.mktemp("latents")


def take(name: str, latents: Path) -> str:
    """Import a format into `latents`/`name`; returns what was said."""
    data = WRITERS[name](latents / f"{name}-theirs")
    where = ["--from", name, "--data", str(data), "--out", str(latents / name)]
    done = command("prepare", *where, "--shard-size", "5")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", VAES)
def test_what_is_imported_is_what_the_project_held(name: str, latents: Path) -> None:
    said, out = take(name, latents), latents / name
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vae"] == VAES[name]
    assert manifest["count"] == len(LABELS)
    assert manifest["scale"] == pytest.approx(SCALES.get(name, 0.18215))
    assert manifest["pixels"] == ([0, 1] if name == "edm2" else [-1, 1])
    assert len(manifest["mean"]) == (4 if name in SCALES else 0)
    assert len(manifest["mirrored"]) == (3 if name == "va-vae" else 0)
    assert manifest["shape"] == [8, SIDE, SIDE]
    assert np.load(out / "labels.npy").tolist() == LABELS.tolist()
    shards = [np.load(out / f"moments-{i:05d}.npy") for i in range(3)]
    assert [len(shard) for shard in shards] == [5, 5, 2]
    mean, log_variance = np.split(np.concatenate(shards).astype(np.float32), 2, axis=1)
    assert np.abs(mean - MEAN).max() < 0.01  # float16, up to 20
    if name in ("fast-dit", "va-vae"):
        assert (log_variance == -30).all()
        assert "one sample of each posterior and no variance" in said
    else:
        assert np.abs(np.exp(log_variance / 2) / DEVIATION - 1).max() < 0.01
    assert ("note: Nothing says which autoencoder" in said) == (VAES[name] is None)


def test_training_reads_them(latents: Path) -> None:
    folder = latents / "edm2"
    if not folder.is_dir():
        take("edm2", latents)
    config = latents / "tiny.yaml"
    config.write_text(
        f"""
name: imported
out: {latents / "runs"}
data: {{kind: latents, path: {folder}}}
model: {{kind: dim, image_size: {SIDE}, channels: 4, n_classes: {LABELS.max() + 1}, dim: 16,
        depth: 3, pads: 1}}
objective: {{kind: flow}}
routing: {{routes: [{{start: 1, stop: 2}}]}}
train: {{steps: 2, batch_size: 4, log_every: 1, threads: 1}}
sample: {{every: 0}}
"""
    )
    done = command("train", "--config", config)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(latents / "runs" / "imported" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    described = json.loads((latents / "runs" / "imported" / "config.json").read_text())
    assert "sd-vae-ft-mse" in json.dumps(described)


def test_an_autoencoder_and_a_scale_can_be_named_and_a_wrong_format_is_one_sentence(
    tmp_path: Path,
) -> None:
    data, out = fast_dit(tmp_path / "theirs"), tmp_path / "out"
    done = command("prepare", "--from", "edm2", "--data", data, "--out", out)
    assert done.returncode == 2
    assert done.stderr == f"error: {data} holds no dataset.json, which has the labels.\n"
    assert not out.exists()
    named = ["--vae", "mine", "--scale", "0.5"]
    done = command("prepare", "--from", "fast-dit", "--data", data, "--out", out, *named)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["vae"], manifest["scale"]) == ("mine", 0.5)
