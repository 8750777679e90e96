"""Sets of images on disk: ADM's .npz, our own, and folders of files.

Shape legend: n images, B batch, H rows, W columns.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from tread_ssm.data import Data
from tread_ssm.data.dataset import read_plain
from tread_ssm.data.images import ImageFolder, image_paths, read_image, without_damaged
from tread_ssm.processes import own_share, world
from tread_ssm.sampling.image_grid import Decode

KEYS = ("arr_0", "images")
_THREADS = 4  # that look for damaged images


@dataclass(frozen=True)
class Images:
    """n images of one size.

    Attributes:
        shape: (n, H, W, 3).
        read: read(start, stop) gives uint8 (stop - start, H, W, 3).
        notes: Which files of a folder are left out, in sentences.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.shape[1], self.shape[2]


def open_images(path: Path, size: int | None = None) -> Images:
    """The images of an .npz (`arr_0`, or `images`: uint8, NHWC), or of a folder and those below.

    An archive that is not compressed, as ADM's are not, is read in place, batch by batch. Images
    of a folder are taken in the order of their paths; hidden ones are no data.

    Args:
        path: The folder or .npz.
        size: Images of a folder are cut to their central square and scaled to so many pixels, as
            training does it, and damaged ones are left out. None: they are taken as they are, and
            must be of one size.

    Raises:
        ValueError: There are none, or they are of another kind.
    """
    if path.is_dir():
        return _folder(path, size)
    names = npz_names(path)
    for key in KEYS:
        if key in names:
            return _array(path, key)
    raise ValueError(
        f"{path} holds no images: it has {', '.join(sorted(names)) or 'nothing'}; expected one of "
        f"{', '.join(KEYS)}."
    )


def images_of(data: Data, decode: Decode, device: torch.device | str) -> Images:
    """The images of training data, as they are trained on but not mirrored.

    Args:
        data: Pixels, or latents, whose images are what the autoencoder decodes their mean to.
        decode: From the data's numbers to images; see `sampling.image_grid.decoder`.
        device: Where it decodes.
    """

    def read(start: int, stop: int) -> np.ndarray:
        return decode(read_plain(data, np.arange(start, stop)).to(device))

    return Images((len(data.labels), *read(0, 1).shape[1:]), read)


def batches(images: Images, batch: int, progress: str | None = None) -> Iterator[Tensor]:
    """This process's share of the images as uint8 tensors (B, 3, H, W).

    Neighbouring batches belong to one process, and where they are cut does not depend on the
    number of processes.

    Args:
        images: The whole set.
        batch: Images at a time.
        progress: What to write beside a progress bar; None: no bar.
    """
    n = len(images)
    mine: Sequence[range] = own_share([range(i, min(i + batch, n)) for i in range(0, n, batch)])
    off = progress is None or world()[0] != 0
    with tqdm(total=sum(map(len, mine)), unit="image", desc=progress, disable=off) as bar:
        for part in mine:
            yield to_batch(np.ascontiguousarray(images.read(part.start, part.stop)))
            bar.update(len(part))


def to_batch(images: np.ndarray) -> Tensor:
    """A copy of uint8 images (B, H, W, 3) as (B, 3, H, W), which extractors take."""
    return rearrange(torch.tensor(images), "b h w c -> b c h w")


def npz_names(path: Path) -> set[str]:
    """The names of an archive's arrays.

    Raises:
        ValueError: The file is missing or is no .npz archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
    except FileNotFoundError:
        raise ValueError(f"{path} is not there.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz ({error}).") from None


def _array(path: Path, key: str) -> Images:
    try:
        array = _mapped(path, f"{key}.npy")
    except (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {key} cannot be read ({error}).") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or len(array) == 0:
        raise ValueError(
            f"{path}: {key} is {array.dtype} of shape {array.shape}; expected uint8 images "
            f"(n, H, W, 3)."
        )
    return Images(array.shape, lambda start, stop: array[start:stop])


def _mapped(path: Path, member: str) -> np.ndarray:
    """An array of an archive as a memory map; unpacked into memory where it is compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        with archive.open(info) as file:
            if info.compress_type != zipfile.ZIP_STORED:
                return np.lib.format.read_array(file, allow_pickle=False)
            shape, fortran, dtype = _header(file)
            header = file.tell()
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        # The local header's own lengths of name and extra field; the central ones may differ.
        name, extra = struct.unpack("<26x2H", raw.read(30))
    start = info.header_offset + 30 + name + extra + header
    if fortran:
        return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order="F")
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _folder(path: Path, size: int | None) -> Images:
    paths, skipped = image_paths(path)
    found = ImageFolder(path, paths, None, (), skipped)
    if size is not None:
        found = without_damaged(found, size, _THREADS)
    if (pixels := found.pixels) is not None:
        return Images(pixels.shape, lambda start, stop: pixels[start:stop], found.notes)
    files = [path / name for name in found.paths]
    shape = read_image(files[0], size).shape

    def read(start: int, stop: int) -> np.ndarray:
        images = [read_image(p, size) for p in files[start:stop]]
        for file, pixels in zip(files[start:stop], images, strict=True):
            if pixels.shape != shape:
                raise ValueError(
                    f"{file} is {pixels.shape[1]} x {pixels.shape[0]} pixels, {files[0]} is "
                    f"{shape[1]} x {shape[0]}; crop them to one size."
                )
        return np.stack(images)

    return Images((len(files), *shape), read, found.notes)
