"""Latents that other projects prepared, as sources for `tread_ssm.data.prepare`.

    fast-dit  folders `*_features` and `*_labels` of {i}.npy: a scaled sample of the posterior each
    maskdit   an LMDB with z-{i} (float32 moments), y-{i} (the label as text) and length
    tread     webdataset tars: a key's .npy (moments, or a sample of the posterior) and its .cls
    edm2      a zip or folder with dataset.json and .npy files of means and deviations; also REPA's

A posterior of which only a sample was kept becomes one of hardly any variance at that sample.

Shape legend: C latent channels, h, w latent places, B batch.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tread_ssm.data.prepare import Encoded

FORMATS = ("fast-dit", "maskdit", "tread", "edm2")
SCALE = 0.18215  # Stable Diffusion's
_CERTAIN = -30.0  # a log-variance that leaves nothing to chance
_BATCH = 256


@dataclass(frozen=True)
class Imported:
    """A source that reads one sample at a time; see `tread_ssm.data.prepare.Source`.

    one: number -> (2C, h, w) float32, means, then log-variances.
    """

    n: int
    labels: np.ndarray | None
    vae: str | None
    one: Callable[[int], np.ndarray]
    scale: float = SCALE
    resolution: int | None = None

    def __len__(self) -> int:
        """n."""
        return self.n

    @property
    def class_names(self) -> tuple[str, ...]:
        """Numbers, since these formats hold no names."""
        return () if self.labels is None else tuple(map(str, range(int(self.labels.max()) + 1)))

    def read(self, part: range) -> Iterator[Encoded]:
        """The samples of these numbers. Raises ValueError where one cannot be used."""
        for i in range(0, len(part), _BATCH):
            read = [self.one(k) for k in part[i : i + _BATCH]]
            for k, moments in zip(part[i:], read, strict=False):
                if moments.ndim != 3 or moments.shape[0] % 2 or moments.shape != read[0].shape:
                    raise ValueError(
                        f"Sample {k} has moments of shape {moments.shape}, sample {part[i]} of "
                        f"{read[0].shape}; expected (2 * channels, height, width) throughout."
                    )
            yield Encoded(torch.from_numpy(np.stack(read)), None)


def open_source(name: str, path: Path, vae: str | None = None) -> Imported:
    """The latents at `path`, in the format `name`, one of FORMATS.

    vae: the autoencoder that they were made with; None: what the project is known to have used.

    Raises ValueError where something is missing or cannot be right.
    """
    makers = {"fast-dit": _fast_dit, "maskdit": _maskdit, "tread": _tread, "edm2": _edm2}
    if name not in makers:
        raise ValueError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    return makers[name](path, vae)


def _fast_dit(path: Path, vae: str | None) -> Imported:
    found = [(p, p.with_name(p.name.replace("_features", "_labels"))) for p in _features(path)]
    if len(found) != 1 or not found[0][1].is_dir():
        raise ValueError(
            f"{path} holds {len(found)} folders named *_features; expected one, and its partner "
            f"*_labels."
        )
    features, labels = ({_number(p): p for p in f.glob("*.npy")} for f in found[0])
    if not features or features.keys() != labels.keys():
        lonely = sorted(features.keys() ^ labels.keys())[:3]
        raise ValueError(
            f"{path}: {len(features)} features and {len(labels)} labels; every {{i}}.npy must be "
            f"in both (as {lonely} are not)."
        )
    order = sorted(features)

    def one(i: int) -> np.ndarray:
        return _certain(_npy(features[order[i]]).squeeze(0) / SCALE, features[order[i]])

    classes = np.array([_npy(labels[k]).item() for k in order], dtype=np.int64)
    return Imported(len(order), classes, vae or "stabilityai/sd-vae-ft-ema", one)


def _features(path: Path) -> list[Path]:
    inside = [p for p in sorted(path.glob("*_features")) if p.is_dir()]
    return [path] if path.name.endswith("_features") else inside


def _number(path: Path) -> int:
    if not path.stem.isdigit():
        raise ValueError(f"{path}: expected a number as its name, as in 17.npy.")
    return int(path.stem)


def _maskdit(path: Path, vae: str | None) -> Imported:
    if find_spec("lmdb") is None:
        raise ValueError('MaskDiT\'s files are read by lmdb: `pip install "tread_ssm[import]"`.')
    import lmdb

    try:
        store = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise ValueError(f"{path} is no LMDB ({error}).") from None

    def get(key: str) -> bytes:
        with store.begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise ValueError(f"{path} holds no {key!r}; expected length, z-0, y-0, z-1, ...")
        return bytes(value)

    def one(i: int) -> np.ndarray:
        flat = np.frombuffer(get(f"z-{i}"), dtype=np.float32)
        side = round((len(flat) / 8) ** 0.5)
        if 8 * side * side != len(flat):
            raise ValueError(
                f"{path}: z-{i} holds {len(flat)} numbers; expected 8 x side x side, moments of "
                f"four channels."
            )
        return flat.reshape(8, side, side)

    n = int(get("length"))
    labels = np.array([int(get(f"y-{i}")) for i in range(n)], dtype=np.int64)
    return Imported(n, labels, vae, one)


def _tread(path: Path, vae: str | None) -> Imported:
    tars = [path] if path.is_file() else sorted(path.rglob("*.tar"))
    members = [_members(tar) for tar in tars]
    places = [place for arrays, _ in members for place in arrays]
    labels = [label for _, named in members for label in named]
    if not places:
        raise ValueError(f"{path} holds no .tar with .npy members.")
    scaled = _tread_is_scaled(places)

    def one(i: int) -> np.ndarray:
        array = _at(*places[i])
        if array.shape[0] == 8:
            return array
        return _certain(array / SCALE if scaled else array, places[i][0])

    return Imported(len(places), np.array(labels, dtype=np.int64), vae, one)


_Place = tuple[Path, int, int]


def _members(tar: Path) -> tuple[list[_Place], list[int]]:
    """Where a tar's arrays lie (file, offset, bytes), and their labels, in its own order."""
    arrays: dict[str, _Place] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                if member.isfile() and ending.endswith("npy"):
                    arrays[key] = (tar, member.offset_data, member.size)
                elif member.isfile() and ending in ("cls", "cls.txt", "json"):
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    labels[key] = _label(file.read().decode(), ending)
    except (tarfile.TarError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{tar} cannot be read ({error}).") from None
    if arrays.keys() != labels.keys():
        lonely = sorted(arrays.keys() ^ labels.keys())[:3]
        raise ValueError(f"{tar}: every key needs one .npy and one .cls; {lonely} lack one.")
    return list(arrays.values()), [labels[key] for key in arrays]


def _label(text: str, ending: str) -> int:
    return int(json.loads(text)["label"] if ending == "json" else text)


def _at(path: Path, offset: int, size: int) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(offset)
        return _loaded(io.BytesIO(file.read(size)), path)


def _tread_is_scaled(places: Sequence[_Place]) -> bool:
    """Whether samples of the posterior were multiplied by the scale: then they vary by about 1.

    Nothing in the tars says so; unscaled ones vary by about 5.5.
    """
    some = np.stack([_at(*place)[:4] for place in places[:64]])
    return bool(some.std() < 2.5)


def _edm2(path: Path, vae: str | None) -> Imported:
    if path.is_dir():
        names = [p.relative_to(path).as_posix() for p in path.rglob("*.npy")]
        described = path / "dataset.json"
        text = described.read_text(encoding="utf-8") if described.is_file() else "{}"

        def load(name: str) -> np.ndarray:
            return _npy(path / name)
    else:
        try:
            archive = zipfile.ZipFile(path)
            names = [n for n in archive.namelist() if n.endswith(".npy")]
            text = archive.read("dataset.json").decode() if _has_json(archive) else "{}"
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} is no readable zip ({error}).") from None

        def load(name: str) -> np.ndarray:
            return _loaded(io.BytesIO(archive.read(name)), Path(name))

    names.sort()
    if not names:
        raise ValueError(f"{path} holds no .npy files.")

    def one(i: int) -> np.ndarray:
        mean, deviation = np.split(load(names[i]), 2)
        if not bool((deviation > 0).all()):
            raise ValueError(
                f"{path}: the second half of {names[i]} reaches {deviation.min():g}; expected "
                f"standard deviations, which are above 0."
            )
        return np.concatenate([mean, 2 * np.log(deviation)])

    labels = _edm2_labels(path, text, names)
    return Imported(len(names), labels, vae or "stabilityai/sd-vae-ft-mse", one)


def _has_json(archive: zipfile.ZipFile) -> bool:
    return "dataset.json" in archive.namelist()


def _edm2_labels(path: Path, text: str, names: Sequence[str]) -> np.ndarray | None:
    try:
        held = json.loads(text).get("labels")
        if held is None:
            return None
        given = {_sample(name): int(label) for name, label in held}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: dataset.json cannot be used ({error}).") from None
    lost = [name for name in names if _sample(name) not in given]
    if lost:
        raise ValueError(
            f"{path}: dataset.json labels {len(given)} files, but not {len(lost)} of those that "
            f"are there, {lost[0]} first."
        )
    return np.array([given[_sample(name)] for name in names], dtype=np.int64)


def _sample(name: str) -> str:
    """The number that a file's name ends in: images and latents of one sample share it."""
    found = re.search(r"(\d+)\.\w+$", name)
    return found.group(1) if found else name


def _certain(sample: np.ndarray, path: Path) -> np.ndarray:
    """Moments (2C, h, w) whose posterior gives (nearly) this sample (C, h, w)."""
    if sample.ndim != 3 or sample.shape[0] != 4:
        raise ValueError(f"{path}: a latent of shape {sample.shape}; expected (4, h, w).")
    return np.concatenate([sample, np.full_like(sample, _CERTAIN)])


def _npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return _loaded(file, path)


def _loaded(file: io.BufferedReader | io.BytesIO, path: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no readable .npy ({error}).") from None
    return np.asarray(array, dtype=np.float32) if array.dtype.kind == "f" else array
