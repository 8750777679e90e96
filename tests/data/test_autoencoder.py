"""The autoencoder against diffusers called by hand, on a small one saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from tread_ssm.data.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(path)
    return path


def test_encode_and_decode_are_diffusers_own(folder: Path) -> None:
    ours, theirs = Autoencoder.load(str(folder)), AutoencoderKL.from_pretrained(folder).eval()
    assert ours.factor == 2
    images = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        x = images.permute(0, 3, 1, 2) / 255 * 2 - 1
        posterior = theirs.encode(x).latent_dist
        z = posterior.mean
        expected = (theirs.decode(z).sample / 2 + 0.5).clamp(0, 1) * 255
    moments = ours.encode(images)
    assert moments.shape == (2, 8, 8, 12)
    mean, log_variance = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_variance.clamp(-30, 20), posterior.logvar, rtol=1e-5, atol=1e-5)
    decoded = ours.decode(z)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (2, 16, 24, 3)
    difference = (decoded.permute(0, 3, 1, 2).float() - expected).abs().max()
    assert difference <= 0.51


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder that `save_pretrained` wrote"):
        Autoencoder.load(str(tmp_path))


def test_latents_of_another_autoencoder(folder: Path) -> None:
    with pytest.raises(ValueError, match="latents have 16 channels, the autoencoder's have 4"):
        Autoencoder.load(str(folder)).decode(torch.zeros(1, 16, 4, 4))


def test_sizes_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        Autoencoder.load(str(folder)).encode(torch.zeros(1, 15, 16, 3, dtype=torch.uint8))
