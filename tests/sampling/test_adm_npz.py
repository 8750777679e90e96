"""Sets of images on their way to ADM's .npz: interrupted anywhere, and past 4 GB."""

from __future__ import annotations

import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tread_ssm.errors import ConfigError
from tread_ssm.evaluation import open_images
from tread_ssm.sampling.adm_npz import Parts
from tread_ssm.sampling.generate import shares

RECORD = {"seed": 0, "recipe": {"steps": 3}}
BATCHES = shares(25, 4)
LABELS = np.arange(25) % 3


def images(numbers: range, side: int = 8) -> np.ndarray:
    rng = np.random.default_rng(numbers.start)
    return rng.integers(0, 256, (len(numbers), side, side, 3), dtype=np.uint8)


def drawn(out: Path, side: int = 8) -> Parts:
    parts = Parts(out, RECORD)
    parts.begin()
    for numbers in BATCHES:
        parts.write(numbers, images(numbers, side))
    return parts


def test_parts_become_adms_file_and_its_description(tmp_path: Path) -> None:
    out = tmp_path / "set.npz"
    parts = drawn(out)
    assert parts.images() == 25 and not parts.finished()
    assert parts.join(BATCHES, LABELS) == (25, 8, 8, 3)
    with np.load(out, allow_pickle=False) as archive:
        assert archive.files == ["arr_0", "arr_1"]
        assert np.array_equal(archive["arr_0"], np.concatenate([images(b) for b in BATCHES]))
        assert np.array_equal(archive["arr_1"], LABELS)
    assert {p.name for p in tmp_path.iterdir()} == {"set.npz", "set.npz.json"}
    assert json.loads((tmp_path / "set.npz.json").read_text()) == RECORD
    assert parts.finished()


def test_archives_past_4_gb_are_zip64_and_read_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered for the writer: `arr_1` then begins behind it, as behind 10 GB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    out = tmp_path / "set.npz"
    drawn(out).join(BATCHES, LABELS)
    assert b"PK\x06\x06" in out.read_bytes()[-200:]  # zip64's end of the central directory
    monkeypatch.undo()
    with np.load(out, allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_1"], LABELS)
    read = open_images(out).read(24, 25)
    assert isinstance(read, np.memmap) and np.array_equal(read, images(BATCHES[-1]))


def test_joining_holds_one_part_in_memory(tmp_path: Path) -> None:
    parts = drawn(tmp_path / "set.npz", side=256)
    part = images(BATCHES[0], side=256).nbytes
    tracemalloc.start()
    parts.join(BATCHES, LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part <= peak < 3 * part  # all of them are 6.25


def test_a_kill_while_joining_loses_nothing(tmp_path: Path) -> None:
    """At every point: parts and description; the .npz as well; and some parts removed."""
    out, kept = tmp_path / "set.npz", tmp_path / "kept"
    parts = drawn(out)
    folder = tmp_path / "set.npz.parts"
    shutil.copytree(folder, kept)
    parts.join(BATCHES, LABELS)
    written = out.read_bytes()

    shutil.copytree(kept, folder)  # killed before the parts were removed
    again = Parts(out, RECORD)
    assert again.finished()
    again.tidy()
    assert not folder.exists()

    shutil.copytree(kept, folder)  # killed before the .npz got its name
    out.rename(folder / ".0123.tmp.npz")
    assert not again.finished()
    again.begin()
    assert all(again.done(b) for b in BATCHES)
    again.join(BATCHES, LABELS)
    assert out.read_bytes() == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "set.npz", "set.npz.json"]


def test_other_settings_and_unknown_files_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "set.npz"
    drawn(out)
    other = Parts(out, RECORD | {"seed": 1})
    with pytest.raises(ConfigError, match=r"parts of a set that was sampled .*seed: 0, now 1"):
        other.begin()
    drawn(out).join(BATCHES, LABELS)
    with pytest.raises(ConfigError, match=r"there already and was sampled .*seed: 0, now 1"):
        other.finished()
    (tmp_path / "set.npz.json").unlink()
    with pytest.raises(ConfigError, match=r"no set.npz.json says how it was sampled"):
        other.finished()


def test_missing_and_torn_parts_are_noticed(tmp_path: Path) -> None:
    parts = drawn(tmp_path / "set.npz")
    files = sorted((tmp_path / "set.npz.parts").glob("*.npy"))
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:-1])
    assert [parts.done(b) for b in BATCHES] == [False] * 3 + [True] * 4
    with pytest.raises(ConfigError, match="lacks 3 of 7 parts"):
        parts.join(BATCHES, LABELS)
    assert not (tmp_path / "set.npz").exists()
