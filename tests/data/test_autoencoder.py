"""The autoencoder against diffusers called by hand, on a small one saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from tests.networks import save_autoencoder
from tread_ssm.data.autoencoder import Autoencoder
from tread_ssm.data.values import LatentValues
from tread_ssm.sampling.image_grid import decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"))


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


@pytest.mark.parametrize(
    ("told", "mean", "deviation"),
    [
        ({"scaling_factor": 0.18215}, 0.0, 1.0),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, 0.0609, 1.0),
        (
            {
                "scaling_factor": 0.5,
                "latents_mean": (0.1, 2.0, -3.0, 0.4),
                "latents_std": (1.0, 2.0, 0.3, 4.0),
            },
            torch.tensor([0.1, 2.0, -3.0, 0.4])[:, None, None],
            torch.tensor([1.0, 2.0, 0.3, 4.0])[:, None, None],
        ),
    ],
    ids=["scale", "shift", "statistics"],
)
def test_latents_are_scaled_as_diffusers_pipelines_do(
    told: dict[str, object], mean: object, deviation: object
) -> None:
    parts = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    network = AutoencoderKL(**parts, **told).eval()
    values = Autoencoder(network, "cpu").values("mine")
    assert values.vae == "mine"
    z = torch.randn(2, 4, 3, 5)
    x = values.scaled_(z.clone())
    torch.testing.assert_close(x, (z - mean) / deviation * told["scaling_factor"])
    torch.testing.assert_close(values.unscaled(x), z)


def test_an_autoencoder_of_pixels_in_0_to_1_is_decoded_in_that_range(folder: Path) -> None:
    ours, theirs = Autoencoder.load(str(folder)), AutoencoderKL.from_pretrained(folder).eval()
    z = torch.randn(2, 4, 4, 6) * 3
    with torch.no_grad():
        expected = theirs.decode(z).sample.clamp(0, 1) * 255
    decoded = ours.decode(z, (0.0, 1.0)).permute(0, 3, 1, 2).float()
    assert (decoded - expected).abs().max() <= 0.51
    assert (ours.decode(z).permute(0, 3, 1, 2) - expected).abs().max() > 20
    statistics = {"mean": (1.0, 2.0, 3.0, 4.0), "deviation": (2.0,) * 4}
    values = LatentValues(scale=0.5, vae=str(folder), pixels=(0.0, 1.0), **statistics)
    sampled = decoder(values, None, "cpu")(values.scaled_(z.clone()))
    assert abs(sampled.astype(int) - decoded.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder that `save_pretrained` wrote"):
        Autoencoder.load(str(tmp_path))


def test_latents_of_another_autoencoder(folder: Path) -> None:
    with pytest.raises(ValueError, match="latents have 16 channels, the autoencoder's have 4"):
        Autoencoder.load(str(folder)).decode(torch.zeros(1, 16, 4, 4))


def test_sizes_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        Autoencoder.load(str(folder)).encode(torch.zeros(1, 15, 16, 3, dtype=torch.uint8))
