"""Features of vision transformers: the class token of images at 224 pixels, from either library."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from tread_ssm.data import load_emoji
from tread_ssm.evaluation import load_extractor, statistics
from tread_ssm.evaluation.metrics import offered

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def emoji(n: int) -> Tensor:
    return torch.from_numpy(load_emoji(32)[0][:n]).permute(0, 3, 1, 2)


def seen(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What a network gets of them."""
    x = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True)
    x = x.clamp(0, 1)
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_timm_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, img_size=224).eval()
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    extractor = load_extractor("timm:test_vit", weights=tmp_path / "a.safetensors")
    config = timm.data.resolve_model_data_config(network)
    with torch.no_grad():
        expected = network(seen(emoji(5), config["mean"], config["std"]))
    found = extractor(emoji(5))
    torch.testing.assert_close(found.pooled, expected, rtol=1e-4, atol=1e-5)
    assert found.spatial is None and found.probabilities is None

    # Statistics are compared by the extractor's name: other weights have another one.
    save_file({n: 1.1 * w for n, w in network.state_dict().items()}, tmp_path / "b.safetensors")
    other = load_extractor("timm:test_vit", weights=tmp_path / "b.safetensors")
    assert extractor.name.startswith("timm:test_vit ") and extractor.name != other.name


def test_metas_file_of_dinov2(tmp_path: Path) -> None:
    """The published layout: positions of 37 x 37 patches, and a mask token that no image needs."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    for name, p in network.named_parameters():
        torch.nn.init.normal_(p, 1.0 if name.endswith("gamma") else 0.0, 0.05)  # all take part
    held = network.state_dict()
    assert held["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    torch.save({"mask_token": torch.zeros(1, 384)} | held, tmp_path / "dinov2_vits14_pretrain.pth")
    extractor = load_extractor(
        "timm:vit_small_patch14_dinov2", weights=tmp_path / "dinov2_vits14_pretrain.pth"
    )
    with torch.no_grad():  # at 16 x 16 patches: timm scales the positions
        expected = network.eval()(seen(emoji(2), MEAN, STD))
    torch.testing.assert_close(extractor(emoji(2)).pooled, expected, rtol=1e-3, atol=1e-4)


def test_dinov2_of_transformers_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = Dinov2Model(Dinov2Config(**size, patch_size=14, image_size=56)).eval()
    network.save_pretrained(tmp_path)
    extractor = load_extractor(f"transformers:{tmp_path}")
    with torch.no_grad():
        expected = network(pixel_values=seen(emoji(4), MEAN, STD)).pooler_output
    torch.testing.assert_close(extractor(emoji(4)).pooled, expected, rtol=1e-4, atol=1e-5)

    for name in offered(extractor.name):
        assert statistics(extractor, [emoji(4)], [name]).count == 4
    with pytest.raises(ValueError, match="features have no spatial part; leave sfid out"):
        statistics(extractor, [emoji(4)], ["sfid"])
    with pytest.raises(ValueError, match="expected uint8"):
        extractor(emoji(4).float())


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no_such_vit' cannot be had from timm"):
        load_extractor("timm:no_such_vit")
    with pytest.raises(ValueError, match="cannot be had from transformers"):
        load_extractor(f"transformers:{tmp_path / 'gone'}")
