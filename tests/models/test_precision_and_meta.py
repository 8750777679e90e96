"""Models that were built without memory, and models in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tread_ssm.models import (
    AttentionConfig,
    DiMConfig,
    DiTConfig,
    Mamba2Config,
    Mamba3Config,
    ModelConfig,
    ZigMambaConfig,
)
from tread_ssm.routing import Route, RoutePlan, TokenSubset

SHAPE = {"image_size": 8, "channels": 3, "n_classes": 9}
HEADS = {"d_state": 8, "head_dim": 8}
MODERN = {"norm": "rms", "mlp": "swiglu", "qk_norm": True, "rope": True, "value_residual": True}
CONFIGS: dict[str, ModelConfig] = {
    "dim": DiMConfig(**SHAPE, dim=16, depth=5, pads=1),
    "zigmamba": ZigMambaConfig(**SHAPE, dim=16, depth=4),
    "dit": DiTConfig(**SHAPE, dim=16, depth=2, heads=2),
    "dit_modern": DiTConfig(**SHAPE, dim=16, depth=2, heads=2, **MODERN),
    "dim_hybrid": DiMConfig(
        **{**SHAPE, "dim": 16, "depth": 5, "attention_every": 2},
        mixer=Mamba2Config(**HEADS, gap_decay=True, true_distance_conv=True),
        attention=AttentionConfig(head_dim=8),
    ),
    "zigmamba_mamba3": ZigMambaConfig(
        **SHAPE, dim=16, depth=4, mixer=Mamba3Config(**HEADS, gap_decay=True, true_distance=True)
    ),
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


@pytest.mark.filterwarnings("ignore:.*slow backend", "ignore:CUDA is not available")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_on_a_gpu_keeps_all_tensors_there_and_waits_for_none(name: str) -> None:
    """Fake tensors have devices and no values: reading one raises, and so does mixing devices."""
    with FakeTensorMode(), torch.autocast("cuda", torch.bfloat16):
        with torch.device("cuda"):
            model = CONFIGS[name].build()
            batch = torch.empty(2, 3, 8, 8), torch.empty(2), torch.empty(2, dtype=torch.int64)
            subset = TokenSubset(torch.empty(2, 7, dtype=torch.int64), 16)
        for routing in ((), ((Route(0, 2), subset),)):
            out = model(*batch, routing=routing)
            assert out.device.type == "cuda" and out.dtype == torch.float32
