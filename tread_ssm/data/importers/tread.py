"""TREAD: webdataset tars; the members of a sample share a key, its .npy and its .cls (or .json).

An .npy of 8 channels holds moments. One of 4 is a sample of the posterior and becomes moments of
(nearly) no variance. Nothing in the tars says whether samples were multiplied by the scale: then
they vary by about 1, otherwise by about 1 / scale, and what is nearer is taken.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from tread_ssm.data.importers.imported import (
    SCALE,
    Imported,
    from_moments,
    from_sample,
    label_array,
    load,
)
from tread_ssm.data.values import LatentValues

_LABELS = ("cls", "cls.txt", "json")  # the first that is there
_HELD_OUT = frozenset({"val", "valid", "validation", "test", "eval"})
_LOOK = 64  # samples that tell how much they vary


@dataclass(frozen=True)
class _Member:
    """Where a file lies in a tar that is not compressed."""

    tar: Path
    name: str
    offset: int
    size: int

    def load(self) -> np.ndarray:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return load(file.read(self.size), str(self))

    def __str__(self) -> str:
        return f"{self.name} of {self.tar}"


def open_tread(path: Path, scale: float | None) -> Imported:
    """The samples of a tar, or of all tars below a folder that hold no validation set, in order.

    Raises:
        ValueError: There are none, or an array or a label is missing.
    """
    scale = SCALE if scale is None else scale
    tars, notes = _training_tars(path)
    watched = tqdm(tars, desc="index", unit="tar", delay=5)
    found = [sample for tar in watched for sample in _samples(tar)]
    if not found:
        raise ValueError(f"{path} holds no .tar with .npy members. {' '.join(notes)}".rstrip())
    arrays = [array for array, _ in found]
    labels = label_array((label for _, label in found), str(path))
    first = arrays[0].load()
    channels = first.shape[0] if first.ndim == 3 else None
    if channels not in (4, 8):
        raise ValueError(
            f"{arrays[0]} has shape {first.shape}; expected (8, height, width), moments, or (4, "
            f"height, width), a sample."
        )
    if channels == 8:

        def moments(i: int) -> np.ndarray:
            return from_moments(arrays[i].load(), str(arrays[i]))

        return Imported(len(arrays), labels, moments, LatentValues(scale=scale), notes)
    spread = float(np.concatenate([a.load().ravel() for a in arrays[:_LOOK]]).std()) + 1e-9
    scaled = abs(math.log(spread)) < abs(math.log(spread * scale))
    note = (
        f"These are samples of posteriors and no variances; training will see the same latents in "
        f"each epoch. They vary by {spread:.2f}, so they are taken as "
        f"{f'multiplied by {scale:g}' if scaled else 'not scaled'}."
    )

    def one(i: int) -> np.ndarray:
        return from_sample(arrays[i].load(), str(arrays[i]), scale if scaled else 1.0)

    return Imported(len(arrays), labels, one, LatentValues(scale=scale), (*notes, note))


def _training_tars(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """A tar, or all below a folder but those of validation sets, and what to say of these."""
    if path.is_file():
        return [path], ()
    every = sorted(path.rglob("*.tar"))
    tars = [tar for tar in every if not _held_out(tar.relative_to(path))]
    if len(tars) == len(every):
        return tars, ()
    note = (
        f"{len(every) - len(tars)} of {len(every)} tars are left out, because their names say that "
        f"they hold validation or test samples. To read these, name their folder or one of them."
    )
    return tars, (note,)


def _held_out(name: Path) -> bool:
    """Whether a word in a tar's name, or in that of a folder above it, says validation or test."""
    words = re.split(r"[^a-z]+", str(name.with_suffix("")).lower())
    return not _HELD_OUT.isdisjoint(words)


def _samples(tar: Path) -> list[tuple[_Member, int]]:
    """A tar's arrays and their labels."""
    arrays: dict[str, _Member] = {}
    texts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                base, _, ending = PurePosixPath(member.name).name.partition(".")
                key = str(PurePosixPath(member.name).with_name(base)) if base else ""
                if not key or not member.isfile():
                    continue
                if ending.split(".")[-1] == "npy":
                    if key in arrays:
                        raise ValueError(f"{key} has two .npy")
                    arrays[key] = _Member(tar, member.name, member.offset_data, member.size)
                elif ending in _LABELS:
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    texts.setdefault(key, {})[ending] = file.read()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ValueError(f"{tar} cannot be used: {error}.") from None
    if arrays.keys() != texts.keys():
        lonely = ", ".join(sorted(arrays.keys() ^ texts.keys())[:3])
        raise ValueError(
            f"{tar}: every key needs an .npy and a label ({', '.join(_LABELS)}); {lonely} lacks "
            f"one."
        )
    return [(array, _label(texts[key], f"{key} of {tar}")) for key, array in arrays.items()]


def _label(texts: dict[str, bytes], where: str) -> int:
    ending = next(e for e in _LABELS if e in texts)
    text = texts[ending]
    try:
        held = json.loads(text)  # a number is JSON as well
        return int(held["label"] if isinstance(held, dict) else held)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ValueError(
            f"{where}: .{ending} is {text[:40]!r}; expected a class number, or a JSON object "
            f"with `label`."
        ) from None
