"""Latents that other projects prepared, as sources for `tread_ssm.data.prepare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tread_ssm.data.importers.edm2 import open_edm2, open_repa
from tread_ssm.data.importers.fast_dit import open_fast_dit
from tread_ssm.data.importers.imported import SCALE, Imported
from tread_ssm.data.importers.maskdit import open_maskdit
from tread_ssm.data.importers.tread import open_tread
from tread_ssm.data.importers.va_vae import open_va_vae

__all__ = ["FORMATS", "SCALE", "Imported", "open_source"]

_OPEN: dict[str, Callable[[Path, float | None], Imported]] = {
    "fast-dit": open_fast_dit,
    "maskdit": open_maskdit,
    "tread": open_tread,
    "edm2": open_edm2,
    "repa": open_repa,
    "va-vae": open_va_vae,
}
FORMATS = tuple(_OPEN)


def open_source(
    name: str, path: str | Path, vae: str | None = None, scale: float | None = None
) -> Imported:
    """The latents of another project.

    Args:
        name: Their format, one of FORMATS.
        path: Where they are.
        vae: The autoencoder that they were made with. None: what the project is known to have used.
        scale: Of the latents that a model sees; also what a format's scaled samples are divided by.
            None: what the project uses.

    Raises:
        ValueError: Something is missing or cannot be right.
    """
    path = Path(path)
    if name not in FORMATS:
        raise ValueError(f"There is no format {name!r}; there are {', '.join(FORMATS)}.")
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; it must be greater than 0.")
    opened = _OPEN[name](path, scale)
    if vae is not None:
        return replace(opened, values=replace(opened.values, vae=vae))
    if opened.values.vae is None:
        unknown = "Nothing says which autoencoder made these latents; name it where you know it."
        return replace(opened, notes=(*opened.notes, unknown))
    return opened
