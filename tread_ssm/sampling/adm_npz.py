"""Sets of images on their way to ADM's .npz: parts that survive an interruption, then one file.

A set OUT.npz is sampled into the folder OUT.npz.parts, one .npy a batch, named by the numbers of
its first and last image; each is whole or not there. `Parts.join` streams them into the .npz.
Beside the result stands OUT.npz.json, which says how it was sampled.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from tread_ssm.errors import ConfigError
from tread_ssm.files import read_json, replacing, write_json

Record = Mapping[str, Any]
"""How a set is sampled, as JSON takes it."""


class Parts:
    """The parts of a set of images that will become the file `out`."""

    def __init__(self, out: Path, record: Record) -> None:
        self._out, self._record = out, json.loads(json.dumps(record))
        self._folder = out.with_name(out.name + ".parts")
        self._described = out.with_name(out.name + ".json")

    def finished(self) -> bool:
        """Whether `out` is there, and was sampled so.

        Raises:
            ConfigError: It was sampled otherwise.
        """
        if not self._out.exists():
            return False
        old = _read(self._described)
        if not old:
            raise ConfigError(
                f"{self._out} is there already, and no {self._described.name} says how it was "
                f"sampled; remove it or choose another name."
            )
        check_same(old, self._record, f"{self._out} is there already and was sampled")
        return True

    def begun(self) -> bool:
        """Whether an earlier command began to sample the set in this way."""
        return _read(self._folder / "record.json") == self._record

    def begin(self) -> None:
        """Make the folder and write down how the set is sampled; for one process.

        Raises:
            ConfigError: It holds finished parts of a set that is sampled otherwise.
        """
        written = self._folder / "record.json"
        if any(self._folder.glob("[0-9]*.npy")):
            what = f"{self._folder} holds parts of a set that was sampled"
            check_same(_read(written), self._record, what)
            return
        write_json(written, self._record)

    def done(self, numbers: range) -> bool:
        """Whether the images of a batch are there."""
        try:
            return len(self._open(numbers)) == len(numbers)
        except (OSError, ValueError, EOFError):  # not there, or cut short by a crash
            return False

    def images(self) -> int:
        """How many images are there, over all processes, by the names of the parts."""
        names = [p.stem.split("-") for p in self._folder.glob("[0-9]*.npy")]
        return sum(int(last) - int(first) + 1 for first, last in names)

    def write(self, numbers: range, images: np.ndarray) -> None:
        """Keep the images (B, H, W, 3) uint8 of a batch."""
        with replacing(self._path(numbers)) as temporary:
            np.save(temporary, images)

    def join(self, batches: Sequence[range], labels: np.ndarray) -> tuple[int, ...]:
        """Write the .npz, remove the parts; returns the shape (n, H, W, 3) of `arr_0`.

        Raises:
            ConfigError: A part is missing.
        """
        missing = [b for b in batches if not self.done(b)]
        if missing:
            raise ConfigError(
                f"{self._folder} lacks {len(missing)} of {len(batches)} parts; all processes have "
                f"to write into the same folder."
            )
        n = sum(map(len, batches))
        shape = (n, *self._open(batches[0]).shape[1:])
        # The description first: a set that is there can always say how it was sampled.
        write_json(self._described, self._record)
        # Inside the folder, so that what a kill leaves of 10 GB is removed with the parts.
        whole = self._folder / "joined.npz"
        _write_npz(whole, map(self._open, batches), shape, labels)
        os.replace(whole, self._out)
        self.tidy()
        return shape

    def tidy(self) -> None:
        """Remove the parts, for one process, where `out` is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, numbers: range) -> Path:
        return self._folder / f"{numbers.start:08d}-{numbers.stop - 1:08d}.npy"

    def _open(self, numbers: range) -> np.ndarray:
        return np.load(self._path(numbers), mmap_mode="r", allow_pickle=False)


def sampled_as(out: Path) -> Record:
    """How the set `out`, finished or begun, is sampled; nothing where there is none."""
    parts = out.with_name(out.name + ".parts")
    return _read(out.with_name(out.name + ".json")) or _read(parts / "record.json")


def check_same(old: Record, new: Record, what: str) -> None:
    """Whether work that is there was done as it would be now.

    Args:
        old, new: The settings then and now.
        what: The beginning of the sentence, such as "set.npz was sampled".

    Raises:
        ConfigError: A setting differs.
    """
    changed = [k for k in new if k not in old or old[k] != new[k]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{what} with other settings for {', '.join(changed)} ({key}: "
            f"{old.get(key, 'unknown')}, now {new[key]}); remove it or choose another name."
        )


def _write_npz(
    path: Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], labels: np.ndarray
) -> None:
    """ADM's layout: `arr_0` uint8 (n, H, W, 3), `arr_1` int64 (n,), not compressed.

    Part by part, so that 50,000 images (10 GB) never are in memory. Whole or not at all; the same
    images give the same bytes.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with _member(archive, "arr_0.npy") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part).tobytes())
        with _member(archive, "arr_1.npy") as file:
            np.lib.format.write_array(file, labels)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # A fixed date: the time of writing would make the bytes differ.
    return archive.open(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True)


def _read(path: Path) -> Record:
    try:
        record = read_json(path)
    except (OSError, ValueError):  # none, or none of ours
        return {}
    return record if isinstance(record, dict) else {}
