"""Fused routes in every backbone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models.test_backbones import BATCH, CONFIGS, draw, every_backbone, gradients, inputs
from tread_ssm.models.convert import to_published
from tread_ssm.routing import Route, RoutePlan

FUSED = Route(1, 4, rejoin="fuse")


def built(name: str, fuse: tuple[tuple[int, int], ...], noise: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    model = replace(CONFIGS[name], fuse=fuse).build()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


@every_backbone
def test_a_map_changes_nothing_at_the_start(name: str) -> None:
    plain, fused = built(name, ()), built(name, ((1, -1),))
    added = fused.state_dict().keys() - plain.state_dict().keys()
    assert added == {f"fuse.1-4.{n}" for n in ("mask_token", "of_start.weight", "of_end.weight")}
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, fused.state_dict()[key]), key
    with torch.no_grad():  # adaLN-zero would hide what the blocks do
        for model in (plain, fused):
            torch.manual_seed(2)
            for key, parameter in model.named_parameters():
                if not key.startswith("fuse"):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    assert torch.equal(plain(*inputs()), fused(*inputs()))
    routed = plain(*inputs(), routing=draw(Route(1, 4)))
    assert torch.equal(routed, fused(*inputs(), routing=draw(FUSED)))


@every_backbone
def test_a_map_that_has_learned_belongs_to_the_dense_network(name: str) -> None:
    model = built(name, ((1, 4),), noise=0.1)
    dense = model(*inputs())
    assert draw(replace(FUSED, drop=0.0)) == ()
    routed = model(*inputs(), routing=draw(FUSED))
    grads = gradients(model, routed)
    assert all(bool((g != 0).any()) for g in grads[-3:])
    with torch.no_grad():
        for parameter in model.fuse.parameters():
            parameter.zero_()
    assert not torch.allclose(model(*inputs()), dense)
    assert not torch.allclose(model(*inputs(), routing=draw(FUSED)), routed)


@every_backbone
@pytest.mark.parametrize("rejoin", ["start", "fuse"])
def test_a_dropped_path_skips_blocks_with_prefix_and_padding(name: str, rejoin: str) -> None:
    model = built(name, ((1, 4),) if rejoin == "fuse" else (), noise=0.1)
    plan = RoutePlan((Route(1, 4, rejoin=rejoin),), 5)
    calls: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    out = model(*inputs(), routing=plan.skipping(BATCH, model.grid))
    assert calls == [0, 4]
    assert not torch.allclose(out, model(*inputs()))
    weight = torch.randn(out.shape)
    grads = torch.autograd.grad((out * weight).sum(), list(model.parameters()), allow_unused=True)
    unused = {n for (n, _), g in zip(model.named_parameters(), grads, strict=True) if g is None}
    assert {n.split(".")[1] for n in unused if n.startswith("blocks")} == {"1", "2", "3"}
    assert not any(n.startswith("fuse") for n in unused)


@every_backbone
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    model = built(name, ((1, 4),), noise=0.1)
    outs = [model(*inputs(), routing=draw(FUSED), checkpoint=c) for c in (False, True)]
    for a, b in zip(*(gradients(model, out) for out in outs), strict=True):
        assert torch.equal(a, b)


def test_routes_and_maps_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a map.*build the model with fuse=\(\(1, 4\),\)"):
        built("zigmamba", ())(*inputs(), routing=draw(FUSED))
    with pytest.raises(ValueError, match=r"DiTConfig: fuse: .*stop is exclusive and may be"):
        replace(CONFIGS["dit"], fuse=((1, 9),))
    config = replace(CONFIGS["dit"], fuse=((1, 4),))
    with pytest.raises(ValueError, match=r"no place for the maps of fused routes"):
        to_published(config, config.build().state_dict())
