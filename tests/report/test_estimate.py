"""The estimate's counts, where they can be checked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tread_ssm.config.run import load_config
from tread_ssm.models import AttentionConfig, DiMConfig, DiTConfig, ModelConfig
from tread_ssm.models.cost import backbone_cost
from tread_ssm.report.estimate import (
    A100_BYTES,
    A100_FLOPS,
    ATTENTION_SHARE,
    MAMBA_SHARE,
    USABLE,
    Memory,
    _kept,
    block_bytes,
    bytes_of_blocks,
    estimate,
    flops_share,
)
from tread_ssm.routing import RoutePlan

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "model",
    [
        DiMConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=5, pads=1),
        DiTConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=5, heads=2),
    ],
    ids=lambda m: m.kind,
)
def test_activations_grow_evenly_with_the_batch(model: ModelConfig) -> None:
    found = block_bytes(model)
    assert set(found) == ({False, True} if model.kind == "dim" else {False})
    for skip, (image, besides) in found.items():
        assert _kept(replace(model, depth=3), 5)[skip] == 5 * image + besides
        tokens = 16 if model.kind == "dit" else 2 + 1 + 25
        assert image > 4 * 32 * tokens  # more than the stream alone
        assert besides >= 0


def test_shares_are_those_of_the_published_figures() -> None:
    dit, dim = (
        backbone_cost(m, RoutePlan((), m.depth)).dense
        for m in (load_config(CONFIGS / f"{n}.yaml").model for n in ("dit_xl", "dim_h"))
    )
    images = 400_000 * 256 / (240 * 3600)  # a second, in 240 A100-hours
    attention = images * dit.training / A100_FLOPS
    assert pytest.approx(attention, rel=1e-4) == ATTENTION_SHARE
    mamba = attention * (25.1 * dim.forward) / (76.9 * dit.forward)
    assert pytest.approx(mamba, rel=1e-4) == MAMBA_SHARE
    assert 0.1 < MAMBA_SHARE < ATTENTION_SHARE < 0.6


def test_dit_xl_is_predicted_at_the_speed_that_the_share_comes_from() -> None:
    config = load_config(CONFIGS / "dit_xl.yaml", ["routing.routes=[]"])
    found = estimate(config, gpus=8)
    assert f"{found.parameters / 1e6:.1f}" == "674.8"
    assert found.ddp.state == 24 * found.parameters
    assert f"{found.images_per_second:.0f}" == f"{8 * 118.5:.0f}"
    assert f"in {found.seconds / 86400:.1f} days" == f"in {240 / 8 / 24:.1f} days"
    assert f"{8 * 118.5:.0f} images/s" in found.table()


def test_a_gpu_is_never_given_more_images_than_the_batch_has() -> None:
    tiny = estimate(load_config(CONFIGS / "quickstart.yaml"), gpus=8)
    assert tiny.ddp.images == 2
    assert tiny.ddp.fitting == 2
    assert "images at once" not in tiny.table()
    assert not re.search(r" 0(\.0)? ", tiny.table())
    assert tiny.seconds == 4000 * 7e-3  # 7 blocks: not as fast as their few FLOPs


def test_what_does_not_fit_is_said() -> None:
    large = ["train.batch_size=65536", "train.checkpoint_gradients=false"]
    found = estimate(load_config(CONFIGS / "dim_h.yaml", large), gpus=8)
    assert 0 < found.ddp.fitting < found.ddp.images == 8192
    assert found.ddp.total <= USABLE * A100_BYTES
    assert f"with {found.ddp.fitting} of 8192 images at once" in found.table()
    assert "not one image fits" in str(Memory(state=90e9, copies=1e9, image=1e6, images=4))


def test_the_attention_blocks_of_a_hybrid_count_as_attention() -> None:
    shape = {"image_size": 8, "channels": 3, "n_classes": 9, "dim": 32, "depth": 7, "pads": 1}
    attention = AttentionConfig(head_dim=8)
    hybrid = DiMConfig(**shape, attention_every=3, attention=attention)
    pure, attends = (replace(hybrid, attention_every=n) for n in (0, 1))
    scans, attending = block_bytes(pure), block_bytes(attends)
    assert scans != attending
    expected = [attending if i in (2, 5) else scans for i in range(7)]
    assert bytes_of_blocks(hybrid) == expected and bytes_of_blocks(pure) == [scans] * 7

    def share(model: DiMConfig) -> float:
        flops = backbone_cost(model, RoutePlan((), 7)).dense.block_flops
        return flops_share(model.build(), flops)

    assert share(pure) == pytest.approx(MAMBA_SHARE)
    assert share(attends) == pytest.approx(ATTENTION_SHARE)
    assert MAMBA_SHARE < share(hybrid) < ATTENTION_SHARE
