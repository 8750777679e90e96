"""Latents on disk: shards of an autoencoder's moments, read as memory maps.

A folder holds
    moments-00000.npy ...  float16 (m, 2C, h, w): the posterior's means, then its log-variances
    flip-00000.npy ...     the same of the mirrored images, where they were asked for
    labels.npy             int64 (n,), where there are classes
    manifest.json          what all this is, with a checksum for every file; written last
Sample i is row i of the shards laid end to end.

Shape legend: n samples, m samples of a shard, B batch, C latent channels, h, w latent places.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST, LABELS = "manifest.json", "labels.npy"
_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A file of `count` samples; sha256 is of its bytes, in hexadecimal."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of latents holds.

    vae:         the autoencoder: an identifier or a folder; None: not known.
    scale:       latents are multiplied by it before a model sees them.
    resolution:  pixels along a side of the images; None: not known.
    shape:       (2C, h, w) of one sample's moments.
    class_names: one for each class; () where there are none.
    mirrored:    shards of the mirrored images, or ().
    labels:      the file of labels; None where there are none.
    """

    vae: str | None
    scale: float
    resolution: int | None
    count: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    mirrored: tuple[Shard, ...]
    labels: Shard | None
    version: int = _VERSION

    @property
    def files(self) -> tuple[Shard, ...]:
        """All files that have a checksum."""
        return (*self.shards, *self.mirrored, *([self.labels] if self.labels else []))


@dataclass(frozen=True)
class PosteriorMoments:
    """Shards as one array (n, 2C, h, w) that stays on disk."""

    parts: tuple[np.ndarray, ...]
    starts: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 2C, h, w)."""
        return int(self.starts[-1]), *self.parts[0].shape[1:]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, index_B: np.ndarray) -> np.ndarray:
        """The samples of these numbers, (B, 2C, h, w) float16, in their order."""
        shards = np.searchsorted(self.starts, index_B, side="right") - 1
        rows = index_B - self.starts[shards]
        # Views of rows, copied at once: measured faster than row by row or an index for each shard.
        return np.stack(
            [self.parts[s][row] for s, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        )


def read_manifest(folder: Path) -> Manifest:
    """What the folder holds. Raises ValueError where it was not finished or is something else."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: it is no folder of latents, or scripts/"
            f"prepare_latents.py was interrupted; the same command goes on where it stopped."
        )
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != _VERSION:
            raise ValueError(f"its version is {raw['version']}, this package reads {_VERSION}")
        for key in ("shards", "mirrored"):
            raw[key] = tuple(Shard(**entry) for entry in raw[key])
        raw["labels"] = Shard(**raw["labels"]) if raw["labels"] else None
        raw["shape"], raw["class_names"] = tuple(raw["shape"]), tuple(raw["class_names"])
        return Manifest(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be used: {error}.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it whole or not at all; the folder is complete from then on."""
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def write_array(path: Path, array: np.ndarray) -> Shard:
    """Write an .npy file whole or not at all; returns its entry in the manifest."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    entry = Shard(path.name, len(array), checksum(temporary))
    os.replace(temporary, path)
    return entry


def open_moments(
    folder: Path, shards: tuple[Shard, ...], shape: tuple[int, ...]
) -> PosteriorMoments:
    """The shards as one array. Raises ValueError where one is missing, cut short or of another
    shape; bytes that were altered are found by `verify` alone."""
    # Plain arrays, still on disk: a row of an np.memmap costs as much to look up as to copy.
    parts = tuple(np.asarray(_open(folder / s.name, (s.count, *shape))) for s in shards)
    return PosteriorMoments(parts, np.cumsum([0, *(s.count for s in shards)]))


def open_labels(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """(n,) int64, or None without classes. Raises ValueError."""
    if manifest.labels is None:
        return None
    return np.asarray(_open(folder / manifest.labels.name, (manifest.count,), "i"))


def verify(folder: Path, watch: Callable[[list[Shard]], Iterator[Shard]] = iter) -> list[str]:
    """Read every byte; a sentence for each file that is not as it was written, [] if all are.

    watch: wraps the list of files, to show progress. Raises ValueError without a manifest.
    """
    manifest = read_manifest(folder)
    return [said for file in watch(list(manifest.files)) if (said := _wrong(folder, file))]


def _wrong(folder: Path, file: Shard) -> str | None:
    path = folder / file.name
    if not path.is_file():
        return f"{path} is missing."
    found = checksum(path)
    if found != file.sha256:
        return f"{path} was altered: its SHA-256 is {found[:12]}..., not {file.sha256[:12]}..."
    return None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _open(path: Path, shape: tuple[int, ...], kind: str = "f") -> np.ndarray:
    """A memory map of an .npy file that must have this shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; give the command of scripts/prepare_latents.py again."
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); delete it and give the command of "
            f"scripts/prepare_latents.py again: it makes what is missing."
        ) from None
    if array.shape != shape or array.dtype.kind != kind:
        raise ValueError(f"{path} is {array.dtype} of shape {array.shape}; expected {shape}.")
    return array
