"""Features of a vision transformer are its own tokens, from either library and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from tread_ssm.data.vision import PatchFeatures


def images(height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, height, width, 3), generator=rng, dtype=torch.uint8)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    colours = pixels.double() / 255
    return ((colours - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).float()


def same(got: Tensor, tokens: Tensor, side: int) -> None:
    """Whether the features are the tokens, scaled to unit length, row by row."""
    assert got.shape == (3, tokens.shape[2], side, side)
    for i in range(side * side):
        row, column = divmod(i, side)
        expected = F.normalize(tokens[:, i], dim=1)
        torch.testing.assert_close(got[:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_timm_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, img_size=48).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    features = PatchFeatures.load("test_vit", "timm", 48, weights=tmp_path / "vit.safetensors")
    assert features.factor == 16
    config = timm.data.resolve_model_data_config(network)
    x = images(48, 48)
    with torch.no_grad():
        tokens = network.forward_features(normalised(x, config["mean"], config["std"]))
    same(features.encode(x), tokens[:, network.num_prefix_tokens :], 3)
    other = timm.create_model("test_vit", num_classes=0, img_size=48)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    again = PatchFeatures.load("test_vit", "timm", 48, weights=tmp_path / "other.safetensors")
    assert again.digest() != features.digest()


def test_transformers_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = Dinov2Model(Dinov2Config(**size, patch_size=14, image_size=42)).eval()
    network.save_pretrained(tmp_path)
    features = PatchFeatures.load(str(tmp_path), "transformers", 42)
    x = images(42, 42)
    with torch.no_grad():
        seen = normalised(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        tokens = network(pixel_values=seen).last_hidden_state[:, 1:]
    same(features.encode(x), tokens, 3)

    # google/vit-base-patch16-224 and others were trained with half as mean and deviation.
    half = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    features = PatchFeatures.load(str(tmp_path), "transformers", 42)
    with torch.no_grad():
        seen = normalised(x, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
        tokens = network(pixel_values=seen).last_hidden_state[:, 1:]
    same(features.encode(x), tokens, 3)


@pytest.mark.parametrize(
    ("name", "library", "text"),
    [
        ("no_such_vit", "timm", "'no_such_vit' cannot be had from timm"),
        ("/nowhere/model", "transformers", "cannot be had from transformers"),
        ("test_resnet", "timm", "cannot be had from timm"),
    ],
)
def test_what_cannot_be_had_is_named(name: str, library: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PatchFeatures.load(name, library, 48)  # type: ignore[arg-type]
