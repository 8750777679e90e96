"""What a model's numbers mean: pixels, or latents of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class PixelValues:
    """The model's numbers are pixels.

    Attributes:
        kind: "pixels".
        low: The number that is black.
        high: The number that is white.
    """

    kind: Literal["pixels"] = "pixels"
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class LatentValues:
    """The model's numbers are (latent - mean) / deviation * scale, channel by channel.

    Attributes:
        kind: "latents".
        scale: Factor between the autoencoder's latents and the model's numbers.
        vae: The autoencoder: a folder, or an identifier on the Hugging Face Hub. None: not known.
        mean: Of the latents, one number a channel. (): 0.
        deviation: Of the latents, one number a channel. (): 1.
        pixels: The numbers that are black and white for the autoencoder.
    """

    kind: Literal["latents"] = "latents"
    scale: float = 0.18215
    vae: str | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    pixels: tuple[float, float] = (-1.0, 1.0)

    def scaled_(self, z: Tensor) -> Tensor:
        """The autoencoder's latents (B, C, H, W) as the model's numbers; z is overwritten."""
        if self.mean:
            z.sub_(_channels(self.mean, z))
        if self.deviation:
            z.div_(_channels(self.deviation, z))
        return z.mul_(self.scale)

    def unscaled(self, x: Tensor) -> Tensor:
        """The model's numbers (B, C, H, W) as the autoencoder's latents."""
        z = x / self.scale
        if self.deviation:
            z = z * _channels(self.deviation, z)
        return z + _channels(self.mean, z) if self.mean else z


def _channels(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """(C, 1, 1) on the device of (B, C, H, W)."""
    return like.new_tensor(numbers)[:, None, None]


Values = PixelValues | LatentValues
