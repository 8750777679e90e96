"""Models that were built without memory, and models in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tread_ssm.models import DiMConfig, DiTConfig, ModelConfig, ZigMambaConfig
from tread_ssm.routing import Route, RoutePlan

CONFIGS: dict[str, ModelConfig] = {
    "dim": DiMConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=5, pads=1),
    "zigmamba": ZigMambaConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=4),
    "dit": DiTConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=2, heads=2),
}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 9])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_built_on_the_meta_device_computes_what_its_weights_say(name: str) -> None:
    model, batch = CONFIGS[name].build(), inputs()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)  # adaLN-zero would hide everything
    with torch.device("meta"):
        empty = CONFIGS[name].build()
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    draw = RoutePlan([Route(0, 2)], depth=model.depth).draw(2, model.grid)
    for routing in ((), draw):
        assert torch.equal(empty(*batch, routing=routing), model(*batch, routing=routing))


@pytest.mark.parametrize("name", CONFIGS)
def test_buffers_follow_the_models_dtype(name: str) -> None:
    model = CONFIGS[name].build().double()
    x, t, labels = inputs()
    assert model(x.double(), t.double(), labels).dtype == torch.float64
    for name, buffer in model.named_buffers():
        assert buffer.dtype in (torch.int64, torch.float64), name


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_needs_autocast(name: str, dtype: torch.dtype) -> None:
    model, (x, t, labels) = CONFIGS[name].build(), inputs()
    with pytest.raises(TypeError, match=rf"x is {dtype}, its weights are torch.float32; pass x"):
        model(x.to(dtype), t, labels)
    model.to(dtype)
    for image in (x, x.to(dtype)):
        with pytest.raises(TypeError, match=rf'weights are {dtype}.* torch.autocast\("cpu", '):
            model(image, t, labels)
    with torch.autocast("cpu", dtype):
        assert model(x, t, labels).dtype == torch.float32
