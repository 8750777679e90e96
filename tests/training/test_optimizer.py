"""Which parameters weight decay touches."""

from __future__ import annotations

import copy
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
from tread_ssm.training.optimizer import AdamWConfig, MuonConfig, decayed

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


@pytest.mark.parametrize(
    ("mixer", "decaying", "others"),
    [
        (
            Mamba2Config(head_dim=16, bidirectional=True, own_backward=True),
            {"in_proj.weight", "conv1d.weight", "out_proj.weight"},
            {"conv1d.bias", "dt_bias", "A_log", "D", "norm.weight"},
        ),
        (
            Mamba3Config(head_dim=16, norm=True),
            {"in_proj.weight", "out_proj.weight"},
            {"dt_bias", "B_bias", "C_bias", "B_norm.weight", "C_norm.weight", "D", "norm.weight"},
        ),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_what_decays_in_a_mixer(
    mixer: Mamba2Config | Mamba3Config, decaying: set[str], others: set[str]
) -> None:
    """Upstream spares the step bias, A_log and D; here norms and biases are spared as well."""
    rule = decayed(mixer.build(32, "raster"))
    assert {name for name, decays in rule.items() if decays} == decaying
    assert {name for name, decays in rule.items() if not decays} == others


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
    if set(options) != {"betas"}:
        with pytest.raises(ValueError, match=message):
            MuonConfig(**options)


def test_decay_of_all_leaves_nothing_out() -> None:
    model = CONFIGS[0].build()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = AdamWConfig(lr=0.1, weight_decay=0.5, eps=1e-15, decay="all").build(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] * 0.95, msg=n)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_muon_gets_the_matrices_inside_blocks_and_adamw_the_rest(config: ModelConfig) -> None:
    model = config.build()
    groups = MuonConfig(weight_decay=0.1).build(model).param_groups
    name_of = {id(p): n for n, p in model.named_parameters()}
    by = {
        rule: {name_of[id(p)] for g in groups for p in g["params"] if g["rule"] == rule}
        for rule in ("muon", "adamw")
    }
    assert by["muon"] | by["adamw"] == set(name_of.values()) and not by["muon"] & by["adamw"]
    rule, shapes = decayed(model), {n: p.shape for n, p in model.named_parameters()}
    assert by["muon"] == {
        n for n in rule if rule[n] and n.startswith("blocks.") and len(shapes[n]) == 2
    }
    assert {n for n in by["muon"] if "mixer" in n or "attention" in n}


def grown(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps with gradients that are a function of the step."""
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        optimizer.step()


def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    first, second = CONFIGS[2].build(), CONFIGS[2].build()
    second.load_state_dict(first.state_dict())
    return [first, second]


def test_both_rules_are_torchs_own() -> None:
    ours, theirs = models()
    config = MuonConfig(lr=0.02, momentum=0.8, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    optimizer = config.build(ours)
    matrices = {n for n in decayed(theirs) if decayed(theirs)[n] and n.startswith("blocks.")}
    named = dict(theirs.named_parameters())
    muon = torch.optim.Muon(
        [named[n] for n in named if n in matrices],
        **{"lr": 0.02, "weight_decay": 0.1, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"},
    )
    apart = [
        {"params": [p for n, p in named.items() if n not in matrices and decayed(theirs)[n] is d]}
        | {"weight_decay": 0.1 if d else 0.0}
        for d in (True, False)
    ]
    adamw = torch.optim.AdamW(apart, lr=0.02, betas=(0.8, 0.9), eps=1e-6, fused=True)
    grown(ours, optimizer, range(3))
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        for p in theirs.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        muon.step()
        adamw.step()
    for (n, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q), n


def test_a_muon_update_is_nearly_orthogonal_and_as_large_as_adamws() -> None:
    model, _ = models()
    weight = model.blocks[0].mlp.fc1.weight  # type: ignore[index, union-attr]
    before = weight.detach().clone()
    optimizer = MuonConfig(lr=0.1).build(model)
    grown(model, optimizer, range(1))
    update = (weight.detach() - before) / -0.1
    rows, columns = update.shape
    singular = torch.linalg.svdvals(update) / (0.2 * max(rows, columns) ** 0.5)
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.4
    # Its root mean square is 0.2, about that of AdamW's updates (arXiv 2502.16982).
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


def test_its_state_goes_into_another_optimizer() -> None:
    ours, other = models()
    optimizer = MuonConfig(lr=0.02).build(ours)
    grown(ours, optimizer, range(3))
    again = MuonConfig(lr=0.5).build(other)
    other.load_state_dict(ours.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # tensors are not copied
    for model, o in ((ours, optimizer), (other, again)):
        grown(model, o, range(3, 5))
    pairs = zip(ours.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
