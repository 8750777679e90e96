"""What holds for all backbones and mixers alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tread_ssm.models import (
    AttentionConfig,
    DiMConfig,
    DiTConfig,
    Mamba1Config,
    Mamba2Config,
    Mamba3Config,
    ModelConfig,
    ZigMambaConfig,
)
from tread_ssm.routing import Draw, Route, RoutePlan, TokenSubset
from tread_ssm.routing.select import Cells, Rows, Segments

BATCH, N = 3, 16
SHAPE = {"image_size": 8, "channels": 2, "n_classes": 3}
HEADS = {"d_state": 8, "head_dim": 8}
MODERN = {"norm": "rms", "mlp": "swiglu", "qk_norm": True, "rope": True, "value_residual": True}
CONFIGS: dict[str, ModelConfig] = {
    "dim": DiMConfig(**SHAPE, dim=16, depth=5, mixer=Mamba1Config(d_state=4)),
    "zigmamba": ZigMambaConfig(**SHAPE, dim=16, depth=5, mixer=Mamba1Config(d_state=4, d_conv=4)),
    "dit": DiTConfig(**SHAPE, dim=16, depth=5, heads=2),
    "dit_modern": DiTConfig(**SHAPE, dim=16, depth=5, heads=2, **MODERN),
    "dim_mamba2": DiMConfig(**SHAPE, dim=16, depth=5, mixer=Mamba2Config(**HEADS)),
    "dim_hybrid": DiMConfig(
        **{**SHAPE, "dim": 16, "depth": 5, "attention_every": 2},
        mixer=Mamba2Config(**HEADS, gap_decay=True, true_distance_conv=True),
        attention=AttentionConfig(head_dim=8),
    ),
    "dim_shared": DiMConfig(
        **{**SHAPE, "dim": 16, "depth": 5, "attention_every": 2, "attention_shared": True},
        mixer=Mamba2Config(**HEADS),
        attention=AttentionConfig(head_dim=8),
    ),
    "zigmamba_mamba3": ZigMambaConfig(**SHAPE, dim=16, depth=5, mixer=Mamba3Config(**HEADS)),
    "dim_both_ways": DiMConfig(
        **{**SHAPE, "dim": 16, "depth": 5},
        mixer=Mamba2Config(**HEADS, bidirectional=True, own_backward=True),
    ),
}
every_backbone = pytest.mark.parametrize("name", CONFIGS)


def live(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small backbone in which no parameter is zero, so that every part takes part."""
    torch.manual_seed(0)
    model = CONFIGS[name].build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def inputs(dtype: torch.dtype = torch.float32, batch: int = BATCH) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, 2, 8, 8, generator=generator, dtype=dtype)
    t = torch.rand(batch, generator=generator, dtype=dtype) * 1000
    return x, t, torch.arange(batch) % 4


def draw(*routes: Route, seed: int = 1, batch: int = BATCH) -> Draw:
    plan = RoutePlan(routes or (Route(1, 4),), 5)
    return plan.draw(batch, (4, 4), torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, out: Tensor) -> Sequence[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), list(model.parameters()))


@every_backbone
def test_drop_zero_is_bit_identical_to_dense(name: str) -> None:
    model, batch = live(name), inputs()
    dense = model(*batch)
    everything = TokenSubset(torch.arange(N).expand(BATCH, N), N)
    assert draw(Route(1, 4, drop=0.0)) == ()
    assert torch.equal(model(*batch, routing=draw(Route(1, 4, drop=0.0))), dense)
    assert torch.equal(model(*batch, routing=((Route(1, 4), everything),)), dense)


@every_backbone
def test_a_routed_pass_leaves_nothing_behind_in_the_model(name: str) -> None:
    model, batch = live(name), inputs()
    before, dense = set(vars(model)), model(*batch)
    routed = model(*batch, routing=draw())
    assert not torch.allclose(routed, dense)
    assert torch.equal(model(*batch), dense)
    assert torch.equal(model.eval()(*batch), dense)
    assert set(vars(model)) == before


@every_backbone
def test_order_of_ids_from_outside_does_not_matter(name: str) -> None:
    model, batch = live(name), inputs()
    ((route, subset),) = draw()
    shuffled = subset.index[:, torch.randperm(subset.n_kept)]
    outs = [
        model(*batch, routing=((route, TokenSubset.of(index, N)),))
        for index in (subset.index, shuffled)
    ]
    assert torch.equal(outs[0], outs[1])


@every_backbone
@pytest.mark.parametrize("drop", [0.3, 0.5, 0.9375], ids=["K=12", "K=8", "K=1"])
@pytest.mark.parametrize("batch", [1, 3])
def test_samples_do_not_see_one_another(name: str, drop: float, batch: int) -> None:
    """Also batch 1, one kept token, and a share that does not divide the tokens."""
    model, whole = live(name, torch.float64), inputs(torch.float64, batch)
    ((route, subset),) = draw(Route(1, 4, drop=drop), batch=batch)
    out = model(*whole, routing=((route, subset),))
    for b in range(batch):
        part = TokenSubset(subset.index[b : b + 1], N)
        alone = model(*(t[b : b + 1] for t in whole), routing=((route, part),))
        torch.testing.assert_close(out[b : b + 1], alone, rtol=1e-10, atol=1e-10)


@every_backbone
@pytest.mark.parametrize("select", [Rows(), Cells(2), Segments(length=4)], ids=repr)
def test_every_selection_runs(name: str, select: object) -> None:
    model, batch = live(name), inputs()
    routed = model(*batch, routing=draw(Route(1, 4, select=select)))
    assert bool(routed.isfinite().all()) and not torch.equal(routed, model(*batch))


@every_backbone
def test_every_parameter_gets_a_gradient_and_checkpointing_the_same(name: str) -> None:
    model, batch = live(name), inputs()
    plain = gradients(model, model(*batch, routing=draw()))
    names = [n for n, _ in model.named_parameters()]
    for parameter, grad in zip(names, plain, strict=True):
        assert float(grad.abs().max()) > 0, f"{parameter} gets no gradient"
    calls: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    recomputed = gradients(model, model(*batch, routing=draw(), checkpoint=True))
    assert calls == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]
    for parameter, a, b in zip(names, plain, recomputed, strict=True):
        assert torch.equal(a, b), parameter


@every_backbone
def test_dropped_tokens_reach_the_loss(name: str) -> None:
    """Gradients come back to the pixels of tokens that skipped the blocks."""
    model, (x, t, labels) = live(name), inputs()
    x.requires_grad_()
    ((route, subset),) = draw(Route(0, 5))
    out = model(x, t, labels, routing=((route, subset),))
    dropped = ~subset.mask().view(BATCH, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    (grad,) = torch.autograd.grad((out * dropped[:, None]).sum(), x)
    assert bool((grad.abs().sum(1)[dropped] > 0).all())


@every_backbone
def test_noise_level_and_label_matter(name: str) -> None:
    model, (x, t, labels) = live(name), inputs()
    out = model(x, t, labels)
    assert not torch.allclose(model(x, t * 0.5, labels), out)
    null = torch.full_like(labels, 3)
    assert not torch.allclose(model(x, t, null)[0], out[0])


@every_backbone
def test_the_state_dict_holds_parameters_only_and_restores_the_model(name: str) -> None:
    model, batch = live(name), inputs()
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}
    torch.manual_seed(9)
    other = CONFIGS[name].build()
    assert not torch.equal(other(*batch), model(*batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*batch), model(*batch))


@every_backbone
def test_the_residual_stream_stays_in_float32_under_autocast(name: str) -> None:
    model, batch = live(name), inputs()
    seen: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, a, out: seen.extend([a[0].dtype, out.dtype]))
    full = model(*batch, routing=draw())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*batch, routing=draw())
    assert set(seen) == {torch.float32} and half.dtype == torch.float32
    error = (half - full).detach().square().mean().sqrt() / full.detach().square().mean().sqrt()
    assert 0 < float(error) < 0.05


@every_backbone
def test_unconditional_models_have_one_label(name: str) -> None:
    model = replace(CONFIGS[name], n_classes=0).build()
    x, t, _ = inputs()
    assert model.label_cond.weight.shape[0] == 1
    assert model(x, t, torch.zeros(BATCH, dtype=torch.int64)).shape == x.shape


@every_backbone
@pytest.mark.parametrize("checkpoint", [False, True])
def test_one_graph_serves_all_draws_of_equal_size(name: str, checkpoint: bool) -> None:
    model, batch = live(name), inputs()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            routing = draw(seed=seed)
            expected = model(*batch, routing=routing)
            out = compiled(*batch, routing=routing, checkpoint=checkpoint)
            torch.testing.assert_close(out, expected)
            for a, b in zip(gradients(model, out), gradients(model, expected), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@every_backbone
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(BATCH, 2, 8, 6)}, ValueError, r"x has shape \(3, 2, 8, 6\)"),
        ({"x": torch.zeros(BATCH, 3, 8, 8)}, ValueError, r"expected \(batch, 2, 8, 8\)"),
        ({"x": torch.zeros(BATCH, 2, 8, 8, dtype=torch.uint8)}, TypeError, "x is torch.uint8"),
        ({"labels": torch.tensor([0, 4, 1])}, ValueError, "labels run from 0 to 4, .* 3 classes"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, "labels run from -1 to 1"),
        ({"t": torch.zeros(1)}, ValueError, "t has shape"),
        ({"t": torch.zeros(BATCH, dtype=torch.int64)}, TypeError, "t is torch.int64"),
        ({"labels": torch.zeros(BATCH, 1, dtype=torch.int64)}, ValueError, "labels has shape"),
        ({"labels": torch.zeros(BATCH, dtype=torch.int32)}, TypeError, "labels are torch.int32"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    name: str, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    x, t, labels = inputs()
    batch = {"x": x, "t": t, "labels": labels, **change}
    with pytest.raises(error, match=message):
        CONFIGS[name].build()(*batch.values())


@every_backbone
def test_a_draw_over_another_grid_is_refused(name: str) -> None:
    routing = RoutePlan((Route(1, 4),), 5).draw(BATCH, (4, 5))
    with pytest.raises(ValueError, match=r"20 .*tokens.* 16.*plan\.draw"):
        CONFIGS[name].build()(*inputs(), routing=routing)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dim", {"depth": 4}, "depth is 4; it must be odd"),
        ("dim", {"depth": 1}, "depth is 1"),
        ("dim", {"pads": 2}, "pads is 2; use 3, 1 or 0"),
        ("dim", {"pads_in_route": "no"}, "pads_in_route is 'no'"),
        ("dim", {"pads": 0, "pads_in_route": "routed"}, "there is nothing to route"),
        ("dim", {"image_size": 9}, "image_size 9 is not a multiple of patch 2"),
        ("dim", {"dim": 17}, "dim is 17"),
        ("zigmamba", {"depth": 0}, "depth is 0; it must be at least 1"),
        ("zigmamba", {"n_classes": -1}, "n_classes is -1"),
        ("dit", {"heads": 3}, "dim 16 is not a multiple of heads 3"),
        ("dit", {"dim": 18, "heads": 1}, "multiple of 4"),
        ("dit", {"out_channels": 0}, "out_channels is 0"),
        ("dit", {"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ("dit", {"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
        ("dit", {"mlp_ratio": 0.0}, r"mlp_ratio is 0\.0"),
        ("dit", {"norm": "batch"}, "norm is 'batch'; use layer or rms"),
        ("dit", {"mlp": "relu"}, "mlp is 'relu'; use gelu or swiglu"),
        ("dit", {"rope": True, "heads": 8}, "dim 16 / heads 8 is 2"),
        ("dit", {"depth": 2.5}, r"depth is 2\.5; it must be at least 1, and a whole number"),
    ],
)
def test_impossible_configs_are_refused(kind: str, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIGS[kind], **change)


@every_backbone
def test_taps_are_the_image_tokens_that_the_block_saw(name: str) -> None:
    model, batch, routing = live(name), inputs(), draw(Route(1, 4))
    out, (first, inside, last) = model(*batch, routing=routing, taps=(0, 2, 4))
    assert torch.equal(out, model(*batch, routing=routing))
    assert first.shape == last.shape == (BATCH, N, 16)
    kept = routing[0][1]
    assert inside.shape == (BATCH, kept.n_kept, 16)
    # What the tokens of a stream are, is what the loop over the blocks makes of them.
    seen = []
    hook = model.blocks[2].register_forward_hook(lambda *a: seen.append(a[2]))
    model(*batch, routing=routing)
    hook.remove()
    assert {tuple(row) for row in inside[0].tolist()} <= {tuple(r) for r in seen[0][0].tolist()}
