"""From a network's numbers to uint8 images, and image grids of them with a row per class.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from tread_ssm.data import PixelValues, Values
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

Decode = Callable[[Tensor], np.ndarray]
"""From the network's numbers (B, C, H, W) to uint8 images (B, H, W, 3)."""


def decoder(values: Values, vae: str | None, device: torch.device | str) -> Decode:
    """What turns a network's numbers into images: `to_uint8` for pixels, else the autoencoder.

    Args:
        values: What the network's numbers mean.
        vae: The autoencoder's folder or identifier. None: the one that the data names.
        device: Where to decode.

    Raises:
        ConfigError: Latents have no autoencoder, pixels have one, or it cannot be loaded.
    """
    if isinstance(values, PixelValues):
        if vae is not None:
            raise ConfigError(
                f"vae is {vae}, but the network's numbers are pixels, which need no autoencoder; "
                f"leave vae out."
            )
        return lambda x: to_uint8(x, values)
    name = vae or values.vae
    if name is None:
        raise ConfigError(
            "the network's numbers are latents, and the data does not say of which autoencoder; "
            "name it as `vae` (a folder, or stabilityai/sd-vae-ft-ema)."
        )
    from tread_ssm.data.autoencoder import Autoencoder  # diffusers takes seconds to import

    try:
        autoencoder = Autoencoder.load(name, device, torch.float32)
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def decode(x: Tensor) -> np.ndarray:
        return np.asarray(autoencoder.decode(values.unscaled(x), values.pixels).cpu())

    return decode


def decoder_at_hand(values: Values, device: torch.device | str) -> tuple[Decode, str | None]:
    """`decoder`, and None; where no autoencoder is at hand, `to_uint8`, and why."""
    try:
        return decoder(values, None, device), None
    except ConfigError as error:
        return lambda x: to_uint8(x, values), str(error)


def to_uint8(x: Tensor, values: Values) -> np.ndarray:
    """x (B, C, H, W) in the model's numbers -> uint8 (B, H, W, 3).

    Pixels are mapped to 0..255 and clipped. Latents are shown, not decoded: their first three
    channels, each stretched over its own range. One channel is shown as grey.
    """
    x = x.detach().to("cpu", torch.float32)
    if isinstance(values, PixelValues):
        x = (x - values.low) / (values.high - values.low)
    else:
        low, high = x.amin(dim=(0, 2, 3), keepdim=True), x.amax(dim=(0, 2, 3), keepdim=True)
        x = (x - low) / (high - low).clamp_min(1e-6)
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    return rearrange((x.clamp(0, 1) * 255).round().to(torch.uint8), "b c h w -> b h w c").numpy()


def save_grid(
    path: Path, images: np.ndarray, row_names: Sequence[str], block_names: Sequence[str] = ()
) -> None:
    """Write an image grid, whole or not at all, in the format of the path's suffix (`FORMATS`).

    Small images are enlarged to about 64 pixels without smoothing.

    Args:
        path: The file.
        images: uint8 (rows * columns, H, W, 3), row after row.
        row_names: What to write beside each row.
        block_names: What to write above the columns, each over an equal share of them.
    """
    rows = len(row_names)
    n, height, width, _ = images.shape
    scale, gap = max(1, 64 // height), 4
    columns = n // rows
    cell_h, cell_w = height * scale + gap, width * scale + gap
    margin = 8 + max((int(_text_width(name)) for name in row_names), default=0)
    head = gap + (16 if block_names else 0)
    canvas = Image.new("RGB", (margin + columns * cell_w, head + rows * cell_h), "white")
    draw = ImageDraw.Draw(canvas)
    for block, name in enumerate(block_names):
        draw.text((margin + block * columns // len(block_names) * cell_w, 2), name, fill="black")
    for row, name in enumerate(row_names):
        top = head + row * cell_h
        draw.text((4, top + cell_h // 2 - 8), name, fill="black")
        for column in range(columns):
            image = Image.fromarray(images[row * columns + column])
            image = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(image, (margin + column * cell_w, top))
    with replacing(path) as temporary:
        canvas.save(temporary, format=FORMATS[path.suffix.lower()], quality=95)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..n-1, evenly spread, both ends among them."""
    if n <= most:
        return list(range(n))
    return [round(i * (n - 1) / max(1, most - 1)) for i in range(most)]


def _text_width(text: str) -> float:
    return ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text)
