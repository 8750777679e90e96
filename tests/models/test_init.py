"""Initial values, and the order in which DiM scans."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tread_ssm.models import (
    DiM,
    DiMConfig,
    DiT,
    DiTConfig,
    Mamba2Config,
    ZigMamba,
    ZigMambaConfig,
)
from tread_ssm.models.dim import scan_orders

SHAPE = {"image_size": 8, "channels": 3, "n_classes": 4}


def batch() -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 3, 8, 8), torch.rand(2) * 1000, torch.tensor([0, 4])


@pytest.mark.parametrize("kind", ["dit", "zigmamba"])
def test_adaln_zero_leaves_mixers_out_and_makes_the_output_zero(kind: str) -> None:
    if kind == "dit":
        model: torch.nn.Module = DiT(DiTConfig(**SHAPE, dim=16, depth=3, heads=2))
    else:
        model = ZigMamba(ZigMambaConfig(**SHAPE, dim=16, depth=3))
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, a, out: pairs.append((a[0], out)))
    assert torch.count_nonzero(model(*batch())) == 0
    assert len(pairs) == 3
    for x, out in pairs:
        assert torch.count_nonzero(x) == x.numel()
        unmixed = x if kind == "dit" else x + F.rms_norm(x, (16,), eps=1e-5)
        assert torch.equal(out, unmixed)


def test_dim_is_live_at_the_start() -> None:
    torch.manual_seed(0)
    model = DiM(DiMConfig(**SHAPE, dim=32, depth=5))
    assert float(model(*batch()).detach().std()) > 0.05
    assert torch.count_nonzero(model.position) == 0
    for block in model.blocks:
        assert 0.5 < float(block.table.detach().std()) * math.sqrt(32) < 1.5
        bound = 1 / math.sqrt(64) / math.sqrt(5)  # fan-in 64, over sqrt(depth)
        weight = block.mixer.out_proj.weight
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound


def test_mixers_start_as_mamba_says() -> None:
    torch.manual_seed(0)
    mixer = DiM(DiMConfig(**SHAPE, dim=64, depth=3)).blocks[0].mixer
    torch.testing.assert_close(-mixer.A_log.exp(), -torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(mixer.D, torch.ones(128))
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias.detach())
    assert 1e-3 * 0.99 < float(dt.min()) < 2e-3 and 0.05 < float(dt.max()) < 0.1 * 1.01
    assert 0.007 < float(dt.median()) < 0.015  # log-uniform: half lies below 0.01
    assert float(mixer.dt_proj.weight.detach().abs().max()) <= mixer.dt_rank**-0.5


@pytest.mark.parametrize("backbone", [DiMConfig, ZigMambaConfig])
def test_the_convolution_of_mamba2_starts_as_pytorchs(backbone: type[DiMConfig]) -> None:
    torch.manual_seed(0)
    mixer = Mamba2Config(head_dim=16)
    conv = backbone(**SHAPE, dim=32, depth=3, mixer=mixer).build().blocks[0].mixer.conv1d
    for values in (conv.weight.detach(), conv.bias.detach()):  # uniform in +- 1 / sqrt(4 taps)
        assert 0.45 < float(values.abs().max()) <= 0.5 and abs(float(values.mean())) < 0.05


def test_linear_biases_are_zero_but_for_the_step() -> None:
    model = DiM(DiMConfig(**SHAPE, dim=16, depth=3))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert (torch.count_nonzero(module.bias) == 0) != name.endswith("dt_proj"), name


def test_the_seed_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(DiM(DiMConfig(**SHAPE, dim=16, depth=3)).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["head.linear.weight"], states[2]["head.linear.weight"])


def test_scan_orders_of_49_blocks() -> None:
    row, row_back, column, column_back = CYCLE = (
        *("raster", "raster_reversed", "column", "column_reversed"),
    )
    orders = scan_orders(49)
    assert orders[0] == orders[48] == row
    assert orders[1:25] == (row_back, column, column_back, row) * 6
    assert orders[25:] == (column_back, column, row_back, row) * 6
    assert set(CYCLE) == set(orders)


@pytest.mark.parametrize("depth", [3, 5, 13, 25, 49])
def test_scan_orders_and_skips_are_mirrored(depth: int) -> None:
    orders = scan_orders(depth)
    assert orders == orders[::-1]
    model = DiM(DiMConfig(**SHAPE, dim=16, depth=depth))
    assert [b.mixer.order for b in model.blocks] == list(orders)
    half = (depth - 1) // 2
    assert model.skips == tuple((i, depth - i) for i in range(1, half + 1))
    assert [b.skip is not None for b in model.blocks] == [i > half for i in range(depth)]


def test_zigmamba_takes_the_eight_zigzags_in_turn() -> None:
    blocks = ZigMamba(ZigMambaConfig(**SHAPE, dim=16, depth=10)).blocks
    expected = [f"zigzag_{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 0, 1)]
    assert [b.mixer.order for b in blocks] == expected
    assert blocks[0].mixer.conv1d.weight.shape == (32, 1, 4)


def test_wide_models_merge_skips_by_two_maps() -> None:
    with torch.device("meta"):
        narrow = DiM(DiMConfig(**SHAPE, dim=512, depth=3)).blocks[2].skip
        wide = DiM(DiMConfig(**SHAPE, dim=514, depth=3)).blocks[2].skip
    assert narrow.joint.weight.shape == (512, 1024) and narrow.apart is None
    assert wide.joint is None and [w.weight.shape for w in wide.apart] == [(514, 514)] * 2
