"""EDM2 and REPA: a zip or a folder of .npy with dataset.json, {"labels": [[name, class], ...]}.

REPA encodes pixels in -1..1 and scales latents as Stable Diffusion does. EDM2 encodes pixels in
0..1 with the same autoencoder, then centres each channel and gives it a deviation of 0.5. Nothing
in the files tells the two apart.

An array is (8, h, w): means, then standard deviations (not log-variances). The names in
dataset.json may be those of the images that the latents were made of: then the number in which a
name ends decides. Without classes, "labels" is null.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tread_ssm.data.importers.imported import (
    SCALE,
    Imported,
    from_deviations,
    label_array,
    load,
)
from tread_ssm.data.values import LatentValues

_DESCRIPTION = "dataset.json"
_VAE = "stabilityai/sd-vae-ft-mse"


def open_edm2(path: Path, scale: float | None) -> Imported:
    """EDM2's latents; scale: their deviation for a model, 0.5 for None. Raises ValueError."""
    return _open(
        path,
        LatentValues(
            scale=0.5 if scale is None else scale,
            vae=_VAE,
            mean=(5.81, 3.25, 0.12, -2.15),
            deviation=(4.17, 4.62, 3.71, 3.28),
            pixels=(0.0, 1.0),
        ),
    )


def open_repa(path: Path, scale: float | None) -> Imported:
    """REPA's latents; scale: 0.18215 for None. Raises ValueError."""
    return _open(path, LatentValues(scale=SCALE if scale is None else scale, vae=_VAE))


def _open(path: Path, values: LatentValues) -> Imported:
    """The latents of a zip or a folder, in the order of their names.

    Raises:
        ValueError: A file or a label is missing, or the archive is damaged.
    """
    every, read = _folder(path) if path.is_dir() else _zip(path)
    names = sorted(name for name in every if name.endswith(".npy"))
    if not names:
        raise ValueError(f"{path} holds no .npy files.")
    if _DESCRIPTION not in every:
        raise ValueError(f"{path} holds no {_DESCRIPTION}, which has the labels.")

    def one(i: int) -> np.ndarray:
        where = f"{names[i]} of {path}"
        return from_deviations(load(read(names[i]), where), where)

    labels = _labels(path, read(_DESCRIPTION), names)
    return Imported(len(names), labels, one, values)


_Read = Callable[[str], bytes]


def _folder(path: Path) -> tuple[list[str], _Read]:
    names = [p.relative_to(path).as_posix() for p in path.rglob("*.npy")]
    described = [_DESCRIPTION] if (path / _DESCRIPTION).is_file() else []
    return names + described, lambda name: (path / name).read_bytes()


def _zip(path: Path) -> tuple[list[str], _Read]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no readable zip ({error}).") from None

    def read(name: str) -> bytes:
        try:
            return archive.read(name)  # zipfile locks: threads may share it
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise ValueError(f"{name} of {path} is damaged ({error}).") from None

    return archive.namelist(), read


def _labels(path: Path, text: bytes, names: Sequence[str]) -> np.ndarray | None:
    where = f"{path}: {_DESCRIPTION}"
    try:
        held = json.loads(text)["labels"]
        if held is None:
            return None
        known: dict[str | int, int] = {str(name): int(label) for name, label in held}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where} has no usable labels ({error!r}).") from None
    keys: Sequence[str | int] = names
    if known.keys().isdisjoint(names):
        keys = [_number(name, where) for name in names]
        given, known = known, {_number(str(name), where): k for name, k in known.items()}
        if len(set(keys)) < len(names) or len(known) < len(given):
            raise ValueError(f"{where} has other names than the files, whose numbers repeat.")
    _same(where, set(keys), set(known))
    return label_array((known[key] for key in keys), where)


def _same(where: str, files: set[str | int], labels: set[str | int]) -> None:
    for lost, what in ((files - labels, "without a label"), (labels - files, "without a file")):
        if lost:
            raise ValueError(
                f"{where} has {len(labels)} labels for {len(files)} files; {len(lost)} stand "
                f"{what}, as {sorted(map(str, lost))[0]} does."
            )


def _number(name: str, where: str) -> int:
    """The number that a file's name ends in: image and latent of one sample share it."""
    found = re.search(r"(\d+)\.\w+$", name)
    if found is None:
        raise ValueError(f"{where}: {name} ends in no number and is not the name of a file.")
    return int(found.group(1))
