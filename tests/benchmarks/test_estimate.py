"""The estimate's counts, where they can be checked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tread_ssm.models import DiMConfig, DiTConfig, ModelConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def estimate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("estimate", ROOT / "benchmarks" / "estimate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "model",
    [
        DiMConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=5, pads=1),
        DiTConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=5, heads=2),
    ],
    ids=lambda m: m.kind,
)
def test_activations_grow_evenly_with_the_batch(estimate: ModuleType, model: ModelConfig) -> None:
    found = estimate.block_bytes(model)
    assert set(found) == ({False, True} if model.kind == "dim" else {False})
    for skip, (image, besides) in found.items():
        assert estimate._kept(estimate.replace(model, depth=3), 5)[skip] == 5 * image + besides
        tokens = 16 if model.kind == "dit" else 2 + 1 + 25
        assert image > 4 * 32 * tokens  # more than the stream alone
        assert besides >= 0


def test_dit_xl_is_predicted_at_the_speed_that_the_share_comes_from(estimate: ModuleType) -> None:
    assert 0.1 < estimate.shares()["mamba"] < estimate.shares()["dit"] < 0.6
    config = estimate.load_config(ROOT / "configs" / "dit_xl.yaml", ["routing.routes=[]"])
    text = "\n".join(estimate.estimate(config, gpus=8))
    assert "674.8M parameters" in text
    assert f"ddp   {24 * 674.8e6 / 1e9:.1f} GB state" in text
    assert f"speed {8 * 118.5:.0f} images/s" in text
    assert f"in {240 / 8 / 24:.1f} days" in text  # 240 A100-hours
