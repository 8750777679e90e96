"""Parameter counts, sequence lengths and costs, on the meta device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tread_ssm.config.run import load_config
from tread_ssm.models import DiM, DiMConfig, DiTConfig, ModelConfig, ZigMambaConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.routing import Route, RoutePlan

LATENT = {"image_size": 32, "channels": 4, "n_classes": 1000}
CIFAR = {"image_size": 32, "channels": 3, "n_classes": 10}
CONFIGS = Path(__file__).parents[2] / "configs"


def model_of(name: str) -> ModelConfig:
    return load_config(CONFIGS / f"{name}.yaml").model


SIZES: dict[str, tuple[ModelConfig, float]] = {  # with millions of parameters
    # as published: the DiT learn a variance
    "dim_s of CIFAR": (DiMConfig(**CIFAR, dim=512, depth=25), 50.6),
    "dim_l": (model_of("dim_l"), 386.1),
    "dim_h": (model_of("dim_h"), 862.4),
    "zigmamba_s": (ZigMambaConfig(**LATENT, dim=368, depth=24), 32.05),
    "zigmamba_b": (ZigMambaConfig(**LATENT, dim=768, depth=24), 136.0),
    "zigmamba_l": (ZigMambaConfig(**LATENT, dim=1024, depth=48), 475.9),
    "dit_s": (DiTConfig(**LATENT, dim=384, depth=12, heads=6, out_channels=8), 33.0),
    "dit_b": (replace(model_of("dit_b"), out_channels=8), 130.0),
    "dit_l": (DiTConfig(**LATENT, dim=1024, depth=24, heads=16, out_channels=8), 458.0),
    "dit_xl": (replace(model_of("dit_xl"), out_channels=8), 675.0),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    config, millions = SIZES[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in config.build().parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(
    ("image_size", "options", "length"),
    [
        (32, {}, 366),
        (64, {}, 1230),
        (32, {"pads": 1}, 1 + 2 + 17 * 17),
        (32, {"pads": 0}, 2 + 256),
    ],
)
def test_sequence_lengths(image_size: int, options: dict[str, int], length: int) -> None:
    shape = {**LATENT, "image_size": image_size}
    config = DiMConfig(**shape, dim=16, depth=3, **options)
    cost = backbone_cost(config, RoutePlan((Route(1, 2),), 3))
    assert cost.dense.tokens == (length,) * 3


@pytest.mark.parametrize(("pads_in_route", "kept"), [("kept", 238), ("routed", 133)])
def test_half_a_dim_l_in_a_route(pads_in_route: str, kept: int) -> None:
    config = replace(model_of("dim_l"), pads_in_route=pads_in_route)
    cost = backbone_cost(config, RoutePlan((Route(2, -4),), 49), batch=2)
    assert cost.routed.tokens == (366,) * 2 + (kept,) * 43 + (366,) * 4
    assert cost.dense.tokens == (366,) * 49
    dense, routed = cost.dense.block_flops, cost.routed.block_flops
    assert dense[:2] == routed[:2] and dense[-4:] == routed[-4:]
    for d, r in zip(dense[2:-4], routed[2:-4], strict=True):  # a scan is linear in the tokens
        assert r / d == pytest.approx(kept / 366, rel=1e-3)
    assert 0 < cost.step_share < 1


def test_flops_of_a_dim_block() -> None:
    """Matrix products alone give 2 * L * (weights of the projections); the scan comes on top."""
    config = DiMConfig(**LATENT, dim=512, depth=3)
    cost = backbone_cost(config, RoutePlan((), 3))
    with torch.device("meta"):
        mixer = DiM(config).blocks[0].mixer
    linears = [mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj]
    products = 2 * 366 * sum(m.weight.numel() for m in linears)
    assert products < cost.dense.block_flops[0] < 1.25 * products


def test_published_flops_of_dit_xl() -> None:
    """118.6 G multiplications and additions (DiT, table 4)."""
    config = replace(model_of("dit_xl"), out_channels=8)
    cost = backbone_cost(config, RoutePlan((Route(2, 24),), 28))
    assert cost.dense.forward / 2 == pytest.approx(118.6e9, rel=0.01)
    assert cost.routed.tokens == (256,) * 2 + (128,) * 22 + (256,) * 4
