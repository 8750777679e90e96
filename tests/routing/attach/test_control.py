"""What diffusers adds to the stream between blocks: a ControlNet's residuals, VACE's hints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.routing.attach.cases import BATCH, CASES, built, lively
from tests.routing.attach.cases.case import PICTURE, POOLED, SD3, STEP, TEXT, made, randn
from tests.routing.attach.masked import masked_dense
from tread_ssm.routing import Draw, Route, RoutePlan, attach
from tread_ssm.routing.attach.presets import PRESETS

VACE = "diffusers.WanVACETransformer3DModel"


def draw() -> Draw:
    return RoutePlan((Route(1, -1),), 5).draw(BATCH, (4, 4), torch.Generator().manual_seed(1))


def controlled() -> tuple[nn.Module, Any]:
    """SD3, and a pass through it with the residuals of a ControlNet."""
    model = built("diffusers.SD3Transformer2DModel")
    net = lively(made("diffusers", "SD3ControlNetModel")(num_layers=3, **SD3))
    inputs = {
        "hidden_states": PICTURE,
        "encoder_hidden_states": TEXT,
        "pooled_projections": POOLED,
        "timestep": STEP,
    }
    picture = randn(*PICTURE.shape, seed=4)
    with torch.no_grad():
        (residuals,) = net(**inputs, controlnet_cond=picture, return_dict=False)

    def run() -> Tensor:
        found: Tensor = model(**inputs, block_controlnet_hidden_states=residuals).sample
        return found

    return model, run


def test_residuals_of_a_controlnet_are_named_or_go_to_the_kept_tokens() -> None:
    model, run = controlled()
    dense = run()
    routing = attach(model)
    message = r"between blocks, inside Route\(start=1(.|\n)*ControlNet.*whole_between=True"
    with pytest.raises(RuntimeError, match=message), routing.using(draw()):
        run()
    blocks = routing.blocks
    routing.detach()
    rows = [replace(r, whole_between=True) for r in PRESETS["diffusers.SD3Transformer2DModel"]]
    expected = masked_dense(blocks, run, draw(), "first", [1] * 5, BATCH)
    with attach(model, rows=rows).using(draw()):
        found = run()
    assert not torch.allclose(found, dense, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_hints_of_vace_are_named_where_routes_draw_by_themselves() -> None:
    model, run = built(VACE).train(), CASES[VACE].run
    routing = attach(model, rows=PRESETS["diffusers.WanTransformer3DModel"], drop=0.5)
    with pytest.raises(RuntimeError, match=r"between blocks, inside Route\(start=1, stop=4\)"):
        run(model)
    model.eval()
    assert run(model).isfinite().all()
    routing.detach()
    routing = attach(model.train(), drop=0.5)
    run(model)
    assert routing.draw[0][1].n_kept == 8
