"""The images that come with the package (see NOTICE.md beside them)."""

from importlib.resources import as_file, files

import numpy as np

__all__ = ["load_emoji"]


def load_emoji(size: int = 32) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Noto emoji: images uint8 (1906, size, size, 3), labels int64 (1906,), the 9 class names.

    size: 32, 16 or 8 pixels a side, by averaging areas. Raises ValueError.
    """
    if size not in (32, 16, 8):
        raise ValueError(f"load_emoji: size is {size}; use 32, 16 or 8.")
    with (
        as_file(files(__name__).joinpath("noto_emoji_32.npz")) as path,
        np.load(path, allow_pickle=False) as archive,
    ):
        images, labels = archive["images"], archive["labels"].astype(np.int64)
        names = tuple(str(n) for n in archive["class_names"])
    if size != 32:
        n, f = len(images), 32 // size
        areas = images.reshape(n, size, f, size, f, 3).mean(axis=(2, 4), dtype=np.float32)
        images = (areas + 0.5).astype(np.uint8)
    return images, labels, names
