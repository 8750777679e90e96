"""MaskDiT: an LMDB with z-{i} (moments, float32 bytes), y-{i} (the label as text) and length."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tread_ssm.data.importers.imported import SCALE, Imported, from_moments, label_array
from tread_ssm.data.values import LatentValues


def open_maskdit(path: Path, scale: float | None) -> Imported:
    """The moments of four channels in the LMDB `path`.

    Raises:
        ValueError: lmdb is missing, or the file holds something else.
    """
    scale = SCALE if scale is None else scale
    if find_spec("lmdb") is None:
        raise ValueError('MaskDiT\'s files are read by lmdb: `pip install "tread_ssm[import]"`.')
    import lmdb

    try:
        store = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise ValueError(f"{path} is no LMDB that can be opened ({error}).") from None

    def get(key: str) -> bytes:
        with store.begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise ValueError(f"{path} holds no {key!r}; expected length, z-0, y-0, z-1, ...")
        if value[:1] == b"\x80" and value[-1:] == b".":
            raise ValueError(
                f"{path}: {key} is a Python pickle. Reading one runs whatever it says, so this "
                f"package does not. Where you trust the file, write it once more as MaskDiT's set "
                f"of 256 pixels is: under z-i the float32 bytes of the moments (8, height, width), "
                f"under y-i and length the number as text."
            )
        return bytes(value)

    def number(key: str) -> int:
        text = get(key)
        if not text.isdigit():
            raise ValueError(f"{path}: {key} is {text[:20]!r}; expected a whole number as text.")
        return int(text)

    def one(i: int) -> np.ndarray:
        value = get(f"z-{i}")
        side = round((len(value) / (8 * 4)) ** 0.5)
        if 8 * 4 * side * side != len(value):
            raise ValueError(
                f"{path}: z-{i} has {len(value)} bytes; expected float32 of 8 x side x side, the "
                f"moments of four channels."
            )
        array = np.frombuffer(value, dtype=np.float32).reshape(8, side, side)
        return from_moments(array, f"z-{i} of {path}")

    n = number("length")
    if n < 1:
        raise ValueError(f"{path} holds no samples; its length is {n}.")
    labels = label_array((number(f"y-{i}") for i in range(n)), str(path))
    return Imported(n, labels, one, LatentValues(scale=scale))
