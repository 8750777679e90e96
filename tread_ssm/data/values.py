"""What a model's numbers mean: pixels, or latents of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    """The model's numbers are latents.

    Attributes:
        kind: "latents".
        scale: Factor between the autoencoder's latents and the model's numbers.
        vae: The autoencoder: a folder, or an identifier on the Hugging Face Hub. None: not known.
    """

    kind: Literal["latents"] = "latents"
    scale: float = 0.18215
    vae: str | None = None


Values = PixelValues | LatentValues
