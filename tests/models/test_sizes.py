"""Parameter counts, sequence lengths and costs, on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tread_ssm.models import SIZES, DiM, DiMConfig, DiTConfig, build_model, sized
from tread_ssm.models.cost import backbone_cost
from tread_ssm.routing import Route, RoutePlan

LATENT = {"image_size": 32, "channels": 4, "n_classes": 1000}
CIFAR = {"image_size": 32, "channels": 3, "n_classes": 10}
MILLIONS = {
    "dim_s": 50.6,
    "dim_l": 386.1,
    "dim_h": 862.4,
    "zigmamba_s": 34.8,
    "zigmamba_b": 136.0,
    "zigmamba_l": 475.9,
    "dit_s": 33.0,
    "dit_b": 130.0,
    "dit_l": 458.0,
    "dit_xl": 675.0,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name: str) -> None:
    config = sized(name, **(CIFAR if name == "dim_s" else LATENT))
    if isinstance(config, DiTConfig):
        config = replace(config, out_channels=8)  # the published networks learn a variance
    with torch.device("meta"):
        model = build_model(config)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.005)


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
    config = replace(sized("dim_l", **LATENT), pads_in_route=pads_in_route)
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
    config = replace(sized("dit_xl", **LATENT), out_channels=8)
    cost = backbone_cost(config, RoutePlan((Route(2, 24),), 28))
    assert cost.dense.forward / 2 == pytest.approx(118.6e9, rel=0.01)
    assert cost.routed.tokens == (256,) * 2 + (128,) * 22 + (256,) * 4


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown size 'dim_xl'; there are dim_s, dim_l"):
        sized("dim_xl", **LATENT)
