"""Shards as one array, and what `verify` notices."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tread_ssm.data.importers import Imported
from tread_ssm.data.prepare import begin, finish, missing, write_shard
from tread_ssm.data.shards import open_labels, open_moments, read_manifest, verify
from tread_ssm.data.values import LatentValues

N = 30
MOMENTS = np.random.default_rng(0).normal(size=(N, 8, 2, 3)).astype(np.float32)
LABELS = np.arange(N) % 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "latents"
    make(out)
    return out


def make(out: Path, size: int = 8) -> None:
    source = Imported(N, LABELS, MOMENTS.__getitem__, LatentValues(vae="some/vae"))
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


def interrupted(out: Path, operation: str, count: int) -> None:
    """Make the folder, killed right before the rename or the write number `count`."""
    code = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
left, real = [{count}], os.{operation}
def killing(*arguments, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
os.{operation} = killing
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shards import make
make(Path({str(out)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 12])
@pytest.mark.parametrize("operation", ["replace", "fsync"])
def test_whenever_it_is_killed_the_same_call_finishes(
    folder: Path, tmp_path: Path, operation: str, count: int
) -> None:
    out = tmp_path / "killed"  # 12 files: the job, 4 shards and 4 records, and three at the end
    interrupted(out, operation, count)
    make(out)
    made, whole = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (out, folder)
    )
    assert made == whole


def test_shards_and_records_that_are_cut_short_are_made_again(folder: Path) -> None:
    before = (folder / "moments-00001.npy").read_bytes()
    for content in (b"", before[:-1], before[:50]):
        (folder / "moments-00001.npy").write_bytes(content)
        assert missing(folder, N, 8) == [range(8, 16)]
        with pytest.raises(ValueError, match="lacks 1 shards; rerun the command"):
            finish(Imported(N, LABELS, MOMENTS.__getitem__, LatentValues()), folder, 8, None)
        make(folder)
        assert (folder / "moments-00001.npy").read_bytes() == before
    (folder / "parts" / "00002.json").write_bytes(b"")
    assert missing(folder, N, 8) == [range(16, 24)]
    make(folder)
    (folder / "job.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"job\.json cannot be read; remove"):
        make(folder)


def test_a_scale_that_means_nothing_ends_without_a_manifest(tmp_path: Path) -> None:
    source = Imported(N, LABELS, MOMENTS.__getitem__, LatentValues(scale=0.0))
    begin(tmp_path / "out", {})
    for part in missing(tmp_path / "out", N, 8):
        write_shard(source, tmp_path / "out", part, 8, int)
    with pytest.raises(ValueError, match="scale is 0"):
        finish(source, tmp_path / "out", 8, None)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_moments_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    moments = MOMENTS.copy()
    moments[5, 0, 0, 0] = 1e6
    source = Imported(N, None, moments.__getitem__, LatentValues(scale=1.0))
    begin(tmp_path / "out", {})
    with pytest.raises(ValueError, match="Samples 0 to 7: the moments are not finite"):
        write_shard(source, tmp_path / "out", range(8), 8, int)
    moments[5, 0, 0, 0], moments[5, 4, 0, 0] = 1, -1e6  # a log-variance is clipped
    write_shard(source, tmp_path / "out", range(8), 8, int)
    stored = torch.from_numpy(np.load(tmp_path / "out" / "moments-00000.npy"))
    assert stored[5, 4, 0, 0] == -30
