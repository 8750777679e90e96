"""Other projects' latents, written here in their layout, read back as moments."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch

from tread_ssm.data import importers
from tread_ssm.data.importers import FORMATS, SCALE, open_source

N, SIDE = 12, 8
RNG = np.random.default_rng(0)
MEAN = (5.5 * RNG.normal(size=(N, 4, SIDE, SIDE))).astype(np.float32)
DEVIATION = RNG.uniform(0.01, 0.5, size=(N, 4, SIDE, SIDE)).astype(np.float32)
MOMENTS = np.concatenate([MEAN, 2 * np.log(DEVIATION)], axis=1)
LABELS = RNG.integers(0, 1000, N)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def fast_dit(path: Path) -> Path:
    for kind, values in (("features", MEAN[:, None] * SCALE), ("labels", LABELS[:, None])):
        folder = path / f"imagenet256_{kind}"
        folder.mkdir(parents=True)
        for i in range(N):
            np.save(folder / f"{i}.npy", values[i])
    return path


def maskdit(path: Path) -> Path:
    with lmdb.open(str(path), map_size=1 << 24) as store, store.begin(write=True) as transaction:
        for i in range(N):
            transaction.put(f"z-{i}".encode(), MOMENTS[i].tobytes())
            transaction.put(f"y-{i}".encode(), str(LABELS[i]).encode())
        transaction.put(b"length", str(N).encode())
    return path


def tread(path: Path, arrays: np.ndarray = MOMENTS) -> Path:
    """Webdataset: shards of tars, the members of a sample side by side under one key."""
    path.mkdir()
    for shard in range(3):
        with tarfile.open(path / f"latents-{shard:06d}.tar", "w") as archive:
            for i in range(shard * 4, shard * 4 + 4):
                label = str(LABELS[i]).encode()
                for name, content in ((f"{i:08d}.npy", npy(arrays[i])), (f"{i:08d}.cls", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return path


def edm2_files() -> dict[str, bytes]:
    names = [f"{i // 5:05d}/img-mean-std-{i:08d}.npy" for i in range(N)]
    files = {name: npy(np.concatenate([MEAN[i], DEVIATION[i]])) for i, name in enumerate(names)}
    labels = [[name, int(label)] for name, label in zip(names, LABELS, strict=True)]
    return files | {"dataset.json": json.dumps({"labels": labels[::-1]}).encode()}


def edm2(path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in edm2_files().items():
            archive.writestr(name, content)
    return path


def repa(path: Path) -> Path:
    for name, content in edm2_files().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "fast-dit": fast_dit,
    "maskdit": maskdit,
    "tread": tread,
    "edm2": edm2,
    "repa": repa,
}


@pytest.mark.parametrize("project", WRITERS)
def test_moments_and_labels_are_those_of_the_project(project: str, tmp_path: Path) -> None:
    path = WRITERS[project](tmp_path / "data")
    source = open_source("edm2" if project == "repa" else project, path)
    assert len(source) == N
    assert source.labels is not None
    assert source.labels.tolist() == LABELS.tolist()
    assert len(source.class_names) == LABELS.max() + 1
    (encoded,) = source.read(range(N))
    mean, log_variance = encoded.moments.numpy().astype(np.float64), None
    mean, log_variance = np.split(mean, 2, axis=1)
    assert np.abs(mean - MEAN).max() < 1e-5
    if project == "fast-dit":  # only a sample was kept: it comes back whatever the noise
        assert np.exp(log_variance / 2).max() < 1e-6
    else:
        assert np.abs(np.exp(log_variance / 2) / DEVIATION - 1).max() < 1e-5
    assert all(map(np.array_equal, encoded.moments[3:7], next(source.read(range(3, 7))).moments))


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_treads_samples_are_told_from_scaled_ones_by_their_spread(
    scale: float, tmp_path: Path
) -> None:
    source = open_source("tread", tread(tmp_path / "tars", MEAN * np.float32(scale)))
    (encoded,) = source.read(range(N))
    assert torch.allclose(encoded.moments[:, :4], torch.from_numpy(MEAN), rtol=1e-5)
    assert (encoded.moments[:, 4:] == -30).all()


def test_an_autoencoder_can_be_named(tmp_path: Path) -> None:
    path = edm2(tmp_path / "data")
    assert open_source("edm2", path).vae == "stabilityai/sd-vae-ft-mse"
    assert open_source("edm2", path, vae="mine").vae == "mine"


def test_edm2_without_labels_has_no_classes(tmp_path: Path) -> None:
    path = repa(tmp_path / "data")
    (path / "dataset.json").write_text('{"labels": null}')
    source = open_source("edm2", path)
    assert source.labels is None
    assert source.class_names == ()


def test_what_cannot_be_right_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            next(open_source(name, path).read(range(N)))

    refuse("dit", tmp_path, "no format 'dit'; there are fast-dit")
    refuse("edm2", tmp_path / "gone", "does not exist")
    for name in FORMATS:
        if name != "maskdit":
            (tmp_path / "empty").mkdir(exist_ok=True)
            refuse(name, tmp_path / "empty", r"holds (no|0) ")
    (fast_dit(tmp_path / "fast") / "imagenet256_labels" / "3.npy").unlink()
    refuse("fast-dit", tmp_path / "fast", r"12 features and 11 labels.*\[3\]")
    (edm2_folder := repa(tmp_path / "edm2"))
    np.save(edm2_folder / "00000/img-mean-std-00000002.npy", MOMENTS[2])
    refuse("edm2", edm2_folder, "expected standard deviations, which are above 0")
    (edm2_folder / "00000/img-mean-std-00000002.npy").write_bytes(pickle.dumps([1]))
    refuse("edm2", edm2_folder, "is no readable .npy")
    (edm2_folder / "dataset.json").write_text('{"labels": [["00000/img00000000.png", 1]]}')
    refuse("edm2", edm2_folder, "labels 1 files, but not 11 of those that are there")
    (tmp_path / "bad.zip").write_text("no zip")
    refuse("edm2", tmp_path / "bad.zip", "no readable zip")
    (tmp_path / "bad.tar").write_text("no tar")
    refuse("tread", tmp_path / "bad.tar", "cannot be read")
    refuse("tread", tread(tmp_path / "odd", MOMENTS[:, :6]), r"shape \(6, 8, 8\)")
    refuse("maskdit", tmp_path / "bad.zip", "is no LMDB")
    monkeypatch.setattr(importers, "find_spec", lambda name: None)
    refuse("maskdit", tmp_path, r"pip install \"tread_ssm\[import\]\"")
