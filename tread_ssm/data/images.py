"""Folders of images: which image belongs to which class, and how one is cut to a square."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageFolder:
    """Images in the order of their paths, so that number i is always the same one.

    paths:       relative to `root`, with forward slashes.
    labels:      (n,) int64; None where the images lie in `root` itself, without classes.
    class_names: the sub-folders of `root`, sorted; their positions are the labels.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def list_images(folder: str | Path) -> ImageFolder:
    """The images of a folder in ImageNet's layout (a sub-folder a class), or without classes.

    Whatever lies deeper belongs to the class of the topmost folder; links are followed. Raises
    ValueError where there is nothing to read, or images lie both beside and inside the sub-folders.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder.")
    paths = sorted(_images(root))
    if not paths:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}).")
    tops = [path.split("/")[0] if "/" in path else None for path in paths]
    loose = tops.count(None)
    if loose == len(paths):
        return ImageFolder(root, tuple(paths), None, ())
    if loose:
        raise ValueError(
            f"{root} holds {loose} images beside its sub-folders and {len(paths) - loose} inside; "
            f"with classes every image lies in the folder of its class."
        )
    names = sorted({top for top in tops if top is not None})
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[top] for top in tops if top is not None], dtype=np.int64)
    return ImageFolder(root, tuple(paths), labels, tuple(names))


def _images(root: Path) -> Iterator[str]:
    # os.walk: a second for ImageNet's million files, where Path.rglob takes fifteen.
    for folder, _, names in os.walk(root, followlinks=True):
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        start = "" if inside == "." else f"{inside}/"
        yield from (start + name for name in names if name.lower().endswith(SUFFIXES))


def read_image(path: Path, size: int) -> np.ndarray:
    """The image's central square, uint8 (size, size, 3). Raises ValueError where it is damaged.

    ADM's crop (Dhariwal & Nichol 2021): halved by averaging while both sides stay at least twice
    `size`, then the shorter side brought to `size` bicubically, then the centre cut out.
    """
    try:
        with Image.open(path) as image:
            return center_crop(image.convert("RGB"), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no readable image ({error}).") from None


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image cut as `read_image` says, uint8 (size, size, 3)."""
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
