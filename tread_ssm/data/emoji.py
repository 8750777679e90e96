"""The images that come with the package (see NOTICE.md beside them)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from einops import reduce

from tread_ssm.data.arrays import Pixels, archive_parts, load_arrays
from tread_ssm.data.held_out import HeldOut

_FILE = Path(__file__).with_name("noto_emoji_32.npz")


@dataclass(frozen=True)
class EmojiData(HeldOut):
    """The embedded Noto emoji: 1906 images, 9 classes.

    Attributes:
        kind: "emoji".
        size: Pixels along a side.
        flip: Mirror half of the images, sampled anew for each batch.
    """

    kind: Literal["emoji"] = "emoji"
    size: Literal[8, 16, 32] = 16
    flip: bool = False

    def open(self) -> Pixels:
        """The images in memory."""
        images, labels, names = load_emoji(self.size)
        return Pixels(images, labels, names, self.flip, archive_parts(_FILE))


def load_emoji(size: int = 32) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The Noto emoji.

    Args:
        size: 32, 16 or 8 pixels along a side, by averaging areas.

    Returns:
        Images uint8 (1906, size, size, 3), labels int64 (1906,), the names of the 9 classes.

    Raises:
        ValueError: There is no such size.
    """
    if size not in (32, 16, 8):
        raise ValueError(f"load_emoji: size is {size}; use 32, 16 or 8.")
    held = load_arrays(_FILE, "images", "labels", "class_names")
    images, labels = held["images"], held["labels"].astype(np.int64)
    if size != 32:
        f = 32 // size
        areas = images.astype(np.float32)
        areas = reduce(areas, "n (h a) (w b) c -> n h w c", "mean", a=f, b=f)
        images = (areas + 0.5).astype(np.uint8)
    return images, labels, tuple(map(str, held["class_names"]))
