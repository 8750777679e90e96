"""Shards as one array, and what `verify` notices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tread_ssm.data.importers import Imported
from tread_ssm.data.prepare import begin, finish, missing, write_shard
from tread_ssm.data.shards import open_labels, open_moments, read_manifest, verify

N = 30
MOMENTS = np.random.default_rng(0).normal(size=(N, 8, 2, 3)).astype(np.float32)
LABELS = np.arange(N) % 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "latents"
    make(out)
    return out


def make(out: Path, size: int = 8) -> None:
    source = Imported(N, LABELS, MOMENTS.__getitem__, 0.18215, "some/vae")
    begin(out, {"of": "the test"})
    for part in missing(out, N, size):
        write_shard(source, out, part, size, int)
    finish(source, out, size, None)


def test_shards_are_one_array(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert [s.count for s in manifest.shards] == [8, 8, 8, 6]
    assert (manifest.count, manifest.shape, manifest.vae) == (N, (8, 2, 3), "some/vae")
    moments = open_moments(folder, manifest.shards, manifest.shape)
    assert moments.shape == (N, 8, 2, 3)
    index = np.random.default_rng(1).integers(0, N, 100)
    assert np.array_equal(moments.take(index), MOMENTS[index].astype(np.float16))
    labels = open_labels(folder, manifest)
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()


def test_verify_names_what_was_altered_and_the_same_command_mends_it(folder: Path) -> None:
    seen: list[str] = []
    assert verify(folder, lambda files: iter([seen.append(f.name) or f for f in files])) == []  # type: ignore[func-returns-value]
    assert seen == [*(f"moments-{i:05d}.npy" for i in range(4)), "labels.npy"]
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    shard = folder / "moments-00002.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (folder / "moments-00003.npy").unlink()
    altered, gone = verify(folder)
    assert "moments-00002.npy was altered: its SHA-256 is" in altered
    assert "moments-00003.npy is missing" in gone
    shard.unlink()
    make(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_manifest_that_cannot_be_read_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    held = json.loads(path.read_text())
    for broken, said in (
        ("{", "cannot be used"),
        (json.dumps(held | {"version": 7}), "its version is 7, this package reads 1"),
        (json.dumps(held | {"extra": 1}), "extra"),
        ("[]", "cannot be used"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=said):
            read_manifest(folder)


def test_another_job_does_not_write_into_the_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(of 'the test' -> 'another'\)"):
        begin(folder, {"of": "another"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty and holds no job\.json"):
        begin(tmp_path / "full", {})


def test_moments_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    moments = MOMENTS.copy()
    moments[5, 0, 0, 0] = 1e6
    source = Imported(N, None, moments.__getitem__, 1.0)
    begin(tmp_path / "out", {})
    with pytest.raises(ValueError, match="Samples 0 to 7: the moments are not finite"):
        write_shard(source, tmp_path / "out", range(8), 8, int)
    moments[5, 0, 0, 0], moments[5, 4, 0, 0] = 1, -1e6  # a log-variance is clipped
    write_shard(source, tmp_path / "out", range(8), 8, int)
    stored = torch.from_numpy(np.load(tmp_path / "out" / "moments-00000.npy"))
    assert stored[5, 4, 0, 0] == -30
