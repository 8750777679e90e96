"""Latents in the layouts that other projects left behind, written from known moments."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import torch
from safetensors.torch import save_file

from tread_ssm.data.importers.imported import SCALE

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


def va_vae(path: Path) -> Path:
    """Two shards of samples with the mirrored ones, and the channels' statistics."""
    path.mkdir()
    for k, part in enumerate((slice(0, 7), slice(7, N))):
        held = {
            "latents": torch.from_numpy(MEAN[part]),
            "latents_flip": torch.from_numpy(MEAN[part] + 3),
            "labels": torch.from_numpy(LABELS[part]),
        }
        save_file(held, path / f"latents_rank{k:02d}_shard000.safetensors")
    mean, std = (getattr(MEAN, name)(axis=(0, 2, 3), keepdims=True) for name in ("mean", "std"))
    held = {"mean": torch.from_numpy(mean), "std": torch.from_numpy(std)}
    torch.save(held, path / "latents_stats.pt")
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "fast-dit": fast_dit,
    "maskdit": maskdit,
    "tread": tread,
    "edm2": edm2,
    "repa": repa,
    "va-vae": va_vae,
}
