"""Folders of images: which image belongs to which class, and how one is cut to a square."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from tread_ssm.processes import is_main

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_ORIENTATION = 0x0112  # EXIF's tag
_LOOKED_AT = 200
_SMALLEST, _LARGEST = 8, 64
_KEPT = 512 << 20  # bytes of cut images in memory
_STRIP = 8  # times as long as wide: only the middle is kept before it is enlarged


@dataclass(frozen=True)
class ImageFolder:
    """Images in the order of their paths, so that number i is always the same one.

    Attributes:
        root: The folder.
        paths: Of the images, relative to `root`, with forward slashes.
        labels: (n,) int64. None where the images lie in `root` itself, without classes.
        class_names: The sub-folders of `root` that hold images, sorted; their positions are the
            labels.
        skipped: Files that are no images, relative to `root`; hidden ones are not among them.
        damaged: Images that cannot be read, relative to `root`, where `without_damaged` looked.
        pixels: (n, size, size, 3) uint8, cut, where `without_damaged` kept them.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each reason to leave files out."""
        total = len(self) + len(self.skipped) + len(self.damaged)
        others = tuple(path for path in self.skipped if not path.lower().endswith(SUFFIXES))
        known = ", ".join(SUFFIXES)
        reasons = {
            f"because their suffix is none of {known} ({_kinds(others)})": others,
            "because they are pipes, devices or links to nothing": tuple(
                sorted({*self.skipped} - {*others})
            ),
            "because they cannot be read": self.damaged,
        }
        return tuple(
            f"Left out: {len(files):,} of {total:,} files in {self.root}, {reason}: {_some(files)}."
            for reason, files in reasons.items()
            if files
        )

    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return [os.stat(self.root / path).st_size for path in self.paths]


def list_images(folder: str | Path) -> ImageFolder:
    """The images of a folder in ImageNet's layout (a sub-folder a class), or without classes.

    Whatever lies deeper belongs to the class of the topmost folder. Links are followed. Hidden
    files and folders are no data.

    Raises:
        ValueError: There is nothing to read, or images lie both beside and inside the sub-folders.
        OSError: A folder cannot be listed.
    """
    root = Path(folder)
    paths, skipped = image_paths(root)
    tops = [path.split("/")[0] if "/" in path else None for path in paths]
    loose = tops.count(None)
    if loose == len(paths):
        return ImageFolder(root, paths, None, (), skipped)
    if loose:
        raise ValueError(
            f"{root} holds {loose} images beside its sub-folders and {len(paths) - loose} inside; "
            f"with classes every image lies in the folder of its class."
        )
    names = sorted({top for top in tops if top is not None})
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[top] for top in tops if top is not None], dtype=np.int64)
    return ImageFolder(root, paths, labels, tuple(names), skipped)


def image_paths(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Images in a folder and those below, and files that are none; both sorted, relative to it.

    Links are followed. Hidden files and folders are no data.

    Raises:
        ValueError: There is no image, or no folder.
        OSError: A folder cannot be listed.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is no folder.")
    files = sorted(_files(root))
    paths = tuple(path for path, whole in files if whole and path.lower().endswith(SUFFIXES))
    if not paths:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}).")
    return paths, tuple(sorted({path for path, _ in files}.difference(paths)))


def without_damaged(images: ImageFolder, size: int, threads: int) -> ImageFolder:
    """The images that can be read; each is read once, as training will.

    What was read is kept if it is at most 512 MB: to decode a photograph of 12 megapixels takes a
    quarter of a second, and training would do it again in every epoch.

    Raises:
        ValueError: There is none.
    """
    shape = len(images), size, size, 3
    pixels = np.empty(shape, np.uint8) if math.prod(shape) <= _KEPT else None

    def reads(i: int) -> bool:
        try:
            found = read_image(images.root / images.paths[i], size)
        except ValueError:
            return False
        if pixels is not None:
            pixels[i] = found
        return True

    name = f"check {images.root.name}"
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(images), unit="image", desc=name, delay=2, disable=not is_main()) as bar,
    ):
        good = np.zeros(len(images), bool)
        for i, there in enumerate(pool.map(reads, range(len(images)))):
            good[i] = there
            bar.update()
    if not good.any():
        raise ValueError(f"none of the {len(images)} images in {images.root} can be read.")
    kept, damaged = (
        tuple(p for p, g in zip(images.paths, good, strict=True) if g == way)
        for way in (True, False)
    )
    labels = None if images.labels is None else images.labels[good]
    if pixels is not None and not good.all():
        pixels = pixels[good]
    return replace(images, paths=kept, labels=labels, damaged=damaged, pixels=pixels)


def fitting_size(images: ImageFolder) -> int:
    """Pixels a side for a small network: the usual shorter side in fours, from 8 to 64.

    The headers of at most 200 images are read. Those that cannot be read do not count.
    """
    sides = []
    for path in images.paths[:: -(-len(images) // _LOOKED_AT)]:
        try:
            with Image.open(images.root / path) as image:
                sides.append(min(image.size))
        except Exception:  # decoders fail in any way on a damaged file
            continue
    usual = int(np.median(sides)) if sides else _LARGEST
    return min(_LARGEST, max(_SMALLEST, usual // 4 * 4))


def _some(files: tuple[str, ...]) -> str:
    return ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")


def _kinds(files: tuple[str, ...]) -> str:
    """How many files end in what, the most frequent first: "120 .txt, 3 .svg"."""
    counts = Counter(Path(path).suffix.lower() or "without suffix" for path in files).most_common()
    return _some(tuple(f"{count:,} {suffix}" for suffix, count in counts))


def _files(root: Path) -> Iterator[tuple[str, bool]]:
    """What lies below `root` but for what is hidden: (its place, whether it can be read).

    Pipes, devices and links to nothing cannot.
    """
    # os.scandir knows what is a file without asking for each of ImageNet's million.
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        here = root / inside
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield inside + entry.name, entry.is_file()
                elif not _leads_back(entry, here):
                    waiting.append(f"{inside}{entry.name}/")


def _leads_back(entry: os.DirEntry[str], here: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return entry.is_symlink() and any(above.samefile(entry.path) for above in (here, *here.parents))


def read_image(path: Path, size: int | None) -> np.ndarray:
    """The image's central square, uint8 (size, size, 3); see `to_rgb` and `center_crop`.

    Args:
        path: The file.
        size: Pixels a side. None: the whole image as it is, (H, W, 3).

    Raises:
        ValueError: The file is damaged or no image.
    """
    try:
        with Image.open(path) as image:
            whole = to_rgb(image)
            return np.asarray(whole) if size is None else center_crop(whole, size)
    except Exception as error:  # decoders fail in any way on a damaged file
        raise ValueError(f"{path} is no readable image ({error}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it: turned as its EXIF data says, 16 bits as 8, on white.

    Raises:
        ValueError: The pixels are floats or larger than 16 bits, whose range nothing tells.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its pixels are {values.dtype}, expected 8 or 16 bits")
        # 65535 / 255 = 257: the full range of 16 bits becomes the full range of 8.
        image = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an RGB image, uint8 (size, size, 3).

    ADM's crop (Dhariwal & Nichol 2021): halved by averaging while both sides stay at least twice
    `size`, then the shorter side brought to `size` bicubically, then the centre cut out.
    """
    reach = _STRIP // 2 * min(image.size)
    if max(image.size) > 2 * reach:  # else a strip of 1 x 20000 pixels would take gigabytes
        x, y = (side // 2 for side in image.size)
        box = (max(0, x - reach), max(0, y - reach), x + reach, y + reach)
        image = image.crop((*box[:2], min(image.width, box[2]), min(image.height, box[3])))
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
