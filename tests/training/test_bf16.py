"""bf16 by autocast: 200 real steps of every backbone stay finite; what stays float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.golden.make import CONFIGS
from tests.training.runs import run, tiny
from tread_ssm.config.run import RoutingConfig, RunConfig
from tread_ssm.diffusion import EDM
from tread_ssm.routing import Route
from tread_ssm.training.optimizer import AdamWConfig


def half(out: Path, name: str, steps: int) -> RunConfig:
    optimizer = AdamWConfig(lr=2e-3, betas=(0.9, 0.99))
    options = {"precision": "bf16", "log_every": 20, "optimizer": optimizer, "warmup": 10}
    return replace(
        tiny(out, steps=steps, save_every=steps, **options),
        model=replace(CONFIGS[name], n_classes=9),
        objective=EDM(),
        routing=RoutingConfig(routes=(Route(1, -1),)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_200_steps_stay_finite_and_learn(tmp_path: Path, name: str) -> None:
    config = half(tmp_path, name, 200)
    rows = run(config)  # a loss or a gradient that is not finite ends it
    assert len(rows) == 10
    assert rows[-1]["loss"] < rows[0]["loss"]
    saved = config.folder.checkpoint(200)
    for file in ("model.safetensors", "ema.safetensors"):
        for key, tensor in load_file(saved / file).items():
            assert tensor.dtype == torch.float32 and bool(tensor.isfinite().all()), (file, key)
    state = torch.load(saved / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    moments = [t for s in state.values() for t in s.values() if isinstance(t, Tensor)]
    assert moments and all(t.dtype == torch.float32 for t in moments)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_stream_the_prediction_and_gradients_are_float32(name: str) -> None:
    torch.manual_seed(0)
    model = CONFIGS[name].build()
    seen: list[torch.dtype] = []
    halves: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(  # a split projection gives its parts
                lambda m, a, out: halves.append((out[0] if isinstance(out, tuple) else out).dtype)
            )
    for block in model.blocks:
        block.register_forward_hook(
            lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).dtype)
        )
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t, torch.tensor([0, 4]))
    assert out.dtype == torch.float32
    assert torch.bfloat16 in halves  # matrix products are what bf16 is for
    assert len(seen) == model.depth and set(seen) == {torch.float32}
    out.square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
