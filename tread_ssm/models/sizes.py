"""The sizes of all backbones, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tread_ssm.models.dim import DiMConfig
from tread_ssm.models.dit import DiTConfig
from tread_ssm.models.zigmamba import ZigMambaConfig


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a backbone; heads only where there is attention."""

    kind: Literal["dim", "zigmamba", "dit"]
    dim: int
    depth: int
    heads: int = 0


# Parameters on 32 x 32 x 4 latents with 1000 classes and patch 2, unless said otherwise.
SIZES: dict[str, Size] = {
    "dim_s": Size("dim", 512, 25),  # 50.6M on 32 x 32 x 3 images with 10 classes
    "dim_l": Size("dim", 1024, 49),  # 386.1M
    "dim_h": Size("dim", 1536, 49),  # 862.4M
    "zigmamba_s": Size("zigmamba", 384, 24),
    "zigmamba_b": Size("zigmamba", 768, 24),
    "zigmamba_l": Size("zigmamba", 1024, 48),
    "dit_s": Size("dit", 384, 12, heads=6),  # 33M, out_channels 8 as all DiT
    "dit_b": Size("dit", 768, 12, heads=12),  # 130M
    "dit_l": Size("dit", 1024, 24, heads=16),  # 458M
    "dit_xl": Size("dit", 1152, 28, heads=16),  # 675M
}


def sized(
    name: str, *, image_size: int, channels: int, n_classes: int, patch: int = 2
) -> DiMConfig | ZigMambaConfig | DiTConfig:
    """The config of a size of the table for one kind of image; further options keep their
    defaults (dataclasses.replace sets them). Raises ValueError for an unknown name."""
    if name not in SIZES:
        raise ValueError(f"sized: unknown size {name!r}; there are {', '.join(SIZES)}.")
    size = SIZES[name]
    if size.kind == "dit":
        return DiTConfig(
            image_size=image_size,
            channels=channels,
            n_classes=n_classes,
            patch=patch,
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
        )
    config = DiMConfig if size.kind == "dim" else ZigMambaConfig
    return config(
        image_size=image_size,
        channels=channels,
        n_classes=n_classes,
        patch=patch,
        dim=size.dim,
        depth=size.depth,
    )
