"""Which parameters weight decay touches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tread_ssm.models import (
    DiMConfig,
    DiTConfig,
    Mamba2Config,
    Mamba3Config,
    ModelConfig,
    ZigMambaConfig,
)
from tread_ssm.training.optimizer import AdamWConfig, decayed

SHAPE = {"image_size": 4, "channels": 1, "n_classes": 2}
CONFIGS: list[ModelConfig] = [
    DiMConfig(image_size=4, channels=1, n_classes=2, dim=32, depth=3),
    ZigMambaConfig(image_size=4, channels=1, n_classes=2, dim=32, depth=2),
    DiTConfig(image_size=4, channels=1, n_classes=2, dim=32, depth=2, heads=2),
    DiMConfig(**SHAPE, dim=32, depth=3, mixer=Mamba2Config(head_dim=16)),
    DiMConfig(**SHAPE, dim=32, depth=3, mixer=Mamba3Config(head_dim=16, norm=True)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_every_trained_parameter_is_in_exactly_one_group(config: ModelConfig) -> None:
    model = config.build()
    optimizer = AdamWConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1).build(model)
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_only_weights_that_mix_channels_decay(config: ModelConfig) -> None:
    model = config.build()
    rule = decayed(model)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert all(
        rule[n] == (n.endswith(".weight") and len(shapes[n]) >= 2)
        for n in rule
        if "label" not in n and "norm" not in n
    )
    for word in ("A_log", ".D", "bias", "norm", "label", "position", "pads", "separators", "table"):
        assert not any(decay for n, decay in rule.items() if word in n), word
    wanted = {"dim": "blocks.0.mixer.in_proj.weight", "zigmamba": "blocks.0.mixer.x_proj.weight"}
    assert rule[wanted.get(config.kind, "patches.projection.weight")]


def test_decay_shrinks_the_decayed_and_leaves_the_others() -> None:
    model = CONFIGS[0].build()
    rule = decayed(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = AdamWConfig(lr=0.1, betas=(0.9, 0.99), weight_decay=0.5).build(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        expected = before[n] * 0.95 if rule[n] else before[n]
        torch.testing.assert_close(p.detach(), expected, msg=n)


def test_a_marked_parameter_never_decays() -> None:
    model = CONFIGS[0].build()
    marked = model.blocks[0].mixer.in_proj.weight
    assert decayed(model)["blocks.0.mixer.in_proj.weight"]
    marked._no_weight_decay = True
    before, rule = marked.detach().clone(), decayed(model)
    assert not rule["blocks.0.mixer.in_proj.weight"] and rule["blocks.1.mixer.in_proj.weight"]
    optimizer = AdamWConfig(lr=0.1, weight_decay=0.5).build(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(marked.detach(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be greater than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"betas": (0.9, 1.0)}, "each must satisfy 0 <= beta < 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamWConfig(**options)
