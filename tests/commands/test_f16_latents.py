"""Latents of 16 x 16 places and 32 channels: from VA-VAE's shards to decoded samples.

The autoencoder is diffusers' AutoencoderKL with 16 x 16 pixels to a place and random weights, and
the configuration the shipped one, made narrow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from tests.networks import save_autoencoder
from tread_ssm.commands import prepare, sample, train
from tread_ssm.config.shipped import shipped
from tread_ssm.data import LatentValues
from tread_ssm.pretrained import read_description
from tread_ssm.report.arms import arms_of
from tread_ssm.report.history import History
from tread_ssm.report.paired import paired_samples
from tread_ssm.sampling.image_grid import decoder

CLASSES = 3


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"), (4,) * 5, latent_channels=32)


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Each channel has its own mean and deviation."""
    rng = torch.Generator().manual_seed(1)
    spread, middle = (torch.rand(32, 1, 1, generator=rng) * s + 0.2 for s in (3, 5))
    return middle + spread * torch.randn(6, 32, 16, 16, generator=rng)


@pytest.mark.parametrize("name", ["dit_b_f16", "dim_l_f16"])
def test_shards_are_trained_on_and_samples_are_decoded(
    name: str, autoencoder: Path, latents: Tensor, tmp_path: Path
) -> None:
    shards, folder, out = (tmp_path / n for n in ("shards", "latents", "set.npz"))
    shards.mkdir()
    mean, std = (getattr(latents, n)(dim=(0, 2, 3), keepdim=True) for n in ("mean", "std"))
    torch.save({"mean": mean, "std": std}, shards / "latents_stats.pt")
    held = {"latents": latents, "labels": torch.arange(6) % CLASSES}
    save_file(held, shards / "latents_rank00_shard000.safetensors")
    command = ["--from", "va-vae", "--data", str(shards), "--out", str(folder)]
    assert prepare.main([*command, "--vae", str(autoencoder)]) == 0

    small = f"model.dim=32 model.depth=9 model.n_classes={CLASSES} train.threads=1 sample.every=0"
    small += f" train.steps=2 train.batch_size=4 train.precision=fp32 data.path={folder}"
    heads = ["model.heads=2"] if name == "dit_b_f16" else []
    config = ["--config", str(shipped()[name]), f"out={tmp_path}", *small.split(), *heads]
    assert train.main(config) == 0

    run = read_description(tmp_path / name)
    assert (run.model.image_size, run.model.channels, run.model.patch) == (16, 32, 1)
    values = run.values
    assert isinstance(values, LatentValues) and values.vae == str(autoencoder)
    scaled = values.scaled_(latents.clone())
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-4
    assert (scaled.std((0, 2, 3)) - 1).abs().max() < 1e-4
    # What the run's description decodes is what the autoencoder makes of the latents themselves.
    with torch.no_grad():
        decoded = AutoencoderKL.from_pretrained(autoencoder).eval().decode(latents[:2]).sample
    expected = ((decoded + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.ptp(expected) > 50
    assert np.abs(decoder(values, None, "cpu")(scaled[:2]) - expected).max() <= 1

    command = ["--run", str(tmp_path / name), "--num", "2", "--npz", str(out), "--steps", "1"]
    assert sample.main([*command, "--device", "cpu"]) == 0
    images = np.load(out)["arr_0"]
    assert images.shape == (2, 256, 256, 3)
    assert not np.array_equal(images[0], images[1])

    autoencoder.rename(tmp_path / "elsewhere")
    try:
        said = paired_samples(arms_of([History.read(tmp_path / name)]), tmp_path / "samples.png")
    finally:
        (tmp_path / "elsewhere").rename(autoencoder)
    assert "Latents are shown undecoded: " in said and (tmp_path / "samples.png").is_file()
