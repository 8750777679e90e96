"""Small networks with random weights, saved as their libraries save published ones."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL


def save_autoencoder(folder: Path) -> Path:
    """An autoencoder like Stable Diffusion's, with 4 channels and 2 x 2 pixels to a place."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder
