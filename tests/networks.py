"""Small networks with random weights, saved as their libraries save published ones."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL


def save_autoencoder(
    folder: Path, widths: tuple[int, ...] = (8, 16), latent_channels: int = 4
) -> Path:
    """An autoencoder like Stable Diffusion's; 2 pixels a side to a place for each width but one."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=widths[0] // 2,
    ).save_pretrained(folder)
    return folder
