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

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tread_ssm.data.values import LatentValues
from tread_ssm.files import MANIFEST, checksum, read_json, replacing, write_json

LABELS = "labels.npy"
_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A file of the folder.

    Attributes:
        name: Of the file.
        count: Samples in it.
        sha256: Of its bytes, in hexadecimal.
    """

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of latents holds.

    Attributes:
        vae: The autoencoder: an identifier or a folder. None: not known.
        scale: Latents are multiplied by it before a model sees them.
        resolution: Pixels along a side of the images. None: not known.
        count: Samples, n.
        shape: (2C, h, w) of one sample's moments.
        class_names: One for each class, () where there are none.
        shards: Files of moments, in order.
        mirrored: Files of the mirrored images' moments, or ().
        labels: The file of labels. None where there are no classes.
        mean, deviation, pixels: As in `LatentValues`.
        holds: "moments" of latents, or "features" of images, (E, h, w) of one sample.
        version: Of this format.
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
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    pixels: tuple[float, float] = (-1.0, 1.0)
    holds: Literal["moments", "features"] = "moments"
    version: int = _VERSION

    def __post_init__(self) -> None:
        for name in ("shards", "mirrored"):
            held = sum(shard.count for shard in getattr(self, name))
            if held != self.count and (held or name == "shards"):
                raise ValueError(f"its {name} hold {held} samples, but count is {self.count}")
        if not (0 < self.scale < math.inf):
            raise ValueError(f"its scale is {self.scale}; it must be greater than 0")
        whole = all(type(size) is int and size > 0 for size in self.shape)
        if len(self.shape) != 3 or not whole or self.shape[0] % 2:
            raise ValueError(f"its shape is {self.shape}; expected (2 * channels, height, width)")
        channels = self.shape[0] // 2
        for name in ("mean", "deviation"):
            numbers = getattr(self, name)
            if len(numbers) not in (0, channels) or not all(map(math.isfinite, numbers)):
                raise ValueError(
                    f"its {name} is {numbers}; expected a finite number for each of {channels} "
                    f"channels"
                )
        if not all(number > 0 for number in self.deviation):
            raise ValueError(f"its deviation is {self.deviation}; all must be greater than 0")
        if self.holds not in ("moments", "features"):
            raise ValueError(f"it holds {self.holds!r}; expected moments or features")
        if len(self.pixels) != 2 or not -math.inf < self.pixels[0] < self.pixels[1] < math.inf:
            raise ValueError(f"its pixels are {self.pixels}; expected (black, white)")
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("its class_names are not all text")
        for file in self.files:
            if file.count < 1 or Path(file.name).name != file.name:
                raise ValueError(f"it lists {file.name!r} of {file.count} samples")

    @property
    def values(self) -> LatentValues:
        """What the numbers that a model sees mean."""
        return LatentValues(
            scale=self.scale,
            vae=self.vae,
            mean=self.mean,
            deviation=self.deviation,
            pixels=self.pixels,
        )

    @property
    def files(self) -> tuple[Shard, ...]:
        """All files that have a checksum."""
        return (*self.shards, *self.mirrored, *([self.labels] if self.labels else []))


@dataclass(frozen=True)
class PosteriorMoments:
    """Shards as one array (n, 2C, h, w) that stays on the disk.

    Attributes:
        files: The shards' files, and their sizes in bytes.
        parts: The shards, (m, 2C, h, w) float16 each.
        starts: The number of the first sample of each, and n at the end.
    """

    files: tuple[tuple[Path, int], ...]
    parts: tuple[np.ndarray, ...]
    starts: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 2C, h, w)."""
        return int(self.starts[-1]), *self.parts[0].shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, index_B: np.ndarray) -> np.ndarray:
        """The samples of these numbers, (B, 2C, h, w) float16, in their order.

        Raises:
            ValueError: A file is gone, or shorter than it was.
        """
        shards = np.searchsorted(self.starts, index_B, side="right") - 1
        rows = index_B - self.starts[shards]
        for path, size in (self.files[s] for s in np.unique(shards)):
            # Reading behind the end of a mapped file would kill the process (SIGBUS).
            if not path.exists() or path.stat().st_size < size:
                raise ValueError(f"{path} was removed or cut short while it was in use.")
        # Views of rows, copied at once: measured faster than row by row or an index for each shard.
        return np.stack(
            [self.parts[s][row] for s, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        )


def read_manifest(folder: Path) -> Manifest:
    """What the folder holds.

    Raises:
        ValueError: The folder was not finished, or is something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: it is no folder of latents, or "
            f"`tread-ssm prepare` was interrupted; rerun the command to resume."
        )
    try:
        raw: dict[str, Any] = read_json(path)
        if raw["version"] != _VERSION:
            raise ValueError(f"its version is {raw['version']}, this package reads {_VERSION}")
        for key in ("shards", "mirrored"):
            raw[key] = tuple(Shard(**entry) for entry in raw[key])
        raw["labels"] = Shard(**raw["labels"]) if raw["labels"] else None
        for key in ("shape", "class_names", "mean", "deviation", "pixels"):
            if key in raw:  # the last three are younger than the first folders
                raw[key] = tuple(raw[key])
        return Manifest(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be used: {error}.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it whole or not at all; the folder is complete from then on."""
    write_json(folder / MANIFEST, asdict(manifest))


def write_array(path: Path, array: np.ndarray) -> Shard:
    """Write an .npy file whole or not at all; returns its entry in the manifest."""
    with replacing(path) as temporary:
        np.save(temporary, array)
        return Shard(path.name, len(array), checksum(temporary))


def open_moments(
    folder: Path, shards: tuple[Shard, ...], shape: tuple[int, ...]
) -> PosteriorMoments:
    """The shards as one array.

    Raises:
        ValueError: One is missing, cut short, or not as the manifest says. Bytes that were altered
            are found by `verify` alone.
    """
    # Plain arrays, still on disk: a row of an np.memmap costs as much to look up as to copy.
    paths = tuple(folder / s.name for s in shards)
    sizes = [s.count for s in shards]
    parts = [open_array(p, (n, *shape), np.float16) for p, n in zip(paths, sizes, strict=True)]
    files = tuple((path, path.stat().st_size) for path in paths)
    return PosteriorMoments(files, tuple(parts), np.cumsum([0, *sizes]))


def open_labels(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """(n,) int64, or None without classes.

    Raises:
        ValueError: The file is missing, cut short, or not as the manifest says.
    """
    if manifest.labels is None:
        return None
    return open_array(folder / manifest.labels.name, (manifest.count,), np.int64)


def verify(folder: Path, watch: Callable[[list[Shard]], Iterator[Shard]] = iter) -> list[str]:
    """Read every byte.

    Args:
        folder: Of latents.
        watch: Wraps the list of files, to show progress.

    Returns:
        A sentence for each file that is not as it was written; [] if all are.

    Raises:
        ValueError: There is no manifest.
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


def open_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An .npy file as an array that stays on the disk.

    Raises:
        ValueError: It is missing, cut short, or has another shape, type, byte or axis order.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; rerun the `tread-ssm prepare` that made the folder."
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); delete it and rerun the "
            f"`tread-ssm prepare` that made the folder: it makes what is missing."
        ) from None
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran order"
        raise ValueError(
            f"{path} is {array.dtype.str} of shape {array.shape}{order}; expected {shape} of "
            f"{np.dtype(dtype).str}."
        )
    return np.asarray(array)
