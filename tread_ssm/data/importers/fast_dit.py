"""fast-DiT: folders `*_features` and `*_labels`, each of {i}.npy with one sample.

A latent is (1, 4, h, w): a sample of the posterior, times the scale. Its variance was not kept, so
it becomes moments of (nearly) no variance: training sees the same latent in each epoch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from tread_ssm.data.importers.imported import SCALE, Imported, from_sample, label_array, load
from tread_ssm.data.values import LatentValues

_NOTE = (
    "fast-DiT kept one sample of each posterior and no variance; training will see the same "
    "latents in each epoch."
)


def open_fast_dit(path: Path, scale: float | None) -> Imported:
    """The pair of folders inside `path`, or `path` itself and its partner.

    Raises:
        ValueError: There is no such pair, or a file has no partner.
    """
    scale = SCALE if scale is None else scale
    features, labels = map(_numbered, _pair(path))
    if not features or features.keys() != labels.keys():
        lonely = ", ".join(f"{k}.npy" for k in sorted(features.keys() ^ labels.keys())[:3])
        raise ValueError(
            f"{path}: {len(features)} features and {len(labels)} labels; every {{i}}.npy must be "
            f"in both{f' ({lonely} is not)' if lonely else ''}."
        )
    order = sorted(features)

    def one(i: int) -> np.ndarray:
        file = features[order[i]]
        array = load(file, str(file))
        sample = array[0] if array.ndim == 4 and len(array) == 1 else array
        return from_sample(sample, str(file), scale)

    watched = tqdm(order, desc="labels", unit="file", delay=5)
    classes = label_array((_label(labels[k]) for k in watched), str(path))
    values = LatentValues(scale=scale, vae="stabilityai/sd-vae-ft-ema")
    return Imported(len(order), classes, one, values, notes=(_NOTE,))


def _pair(path: Path) -> tuple[Path, Path]:
    inside = [p for p in sorted(path.glob("*_features")) if p.is_dir()]
    found = [path] if path.name.endswith("_features") else inside
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} folders named *_features; expected one. Where there are "
            f"several, give the one that is meant."
        )
    labels = found[0].with_name(found[0].name.removesuffix("_features") + "_labels")
    if not labels.is_dir():
        raise ValueError(f"{found[0]} has no partner {labels.name}.")
    return found[0], labels


def _numbered(folder: Path) -> dict[int, Path]:
    """The folder's files by number: 10.npy comes after 9.npy."""
    files = list(folder.glob("*.npy"))
    for file in files:
        if not file.stem.isdigit():
            raise ValueError(f"{file}: expected a number as its name, as in 17.npy.")
    return {int(file.stem): file for file in files}


def _label(file: Path) -> int:
    array = load(file, str(file))
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{file} is {array.dtype} of shape {array.shape}; expected one whole number."
        )
    return int(array.item())
