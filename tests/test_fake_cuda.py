"""The forward pass and the loss of every configuration on a GPU that is not there.

Fake CUDA tensors have shapes, dtypes and devices but no values. An operation whose tensors lie on
different devices fails on them, and so does one that waits for a value, like `.item()`. Operators
run their fake kernels; the kernels themselves have their own tests.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.diffusion import route_loss
from tread_ssm.scan import choose_backend
from tread_ssm.training.batch import Batch

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
B = 3


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backends be chosen as on a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def fake_model(config: RunConfig) -> torch.nn.Module:
    with torch.device("cuda"):
        return config.model.build()


def fake_batch(config: RunConfig) -> Batch:
    """A batch as BatchMaker makes it, on the CPU."""
    model = config.model
    x = torch.randn(B, model.channels, model.image_size, model.image_size)
    labels = torch.arange(B) % (model.n_classes + 1)
    t = config.objective.sample_t(B, torch.Generator().manual_seed(0))
    draw = config.plan.draw(B, config.grid, torch.Generator().manual_seed(0))
    return Batch(x, labels, t, torch.randn_like(x), draw)


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_forward_and_loss(file: Path) -> None:
    config = load_config(file)
    assert choose_backend(None, "cuda", torch.bfloat16) == "triton"
    with FakeTensorMode():
        model = fake_model(config)
        batch = fake_batch(config).to(torch.device("cuda"))
        network = partial(model, checkpoint=config.train.checkpoint_gradients)
        with torch.autocast("cuda", torch.bfloat16):
            terms = config.objective.loss_terms(
                network, batch.x, batch.labels, batch.t, batch.noise, batch.draw
            )
        losses = route_loss(terms, batch.draw, config.model.patch, config.routing.loss)
    assert losses.total.device.type == "cuda"
    assert losses.total.dtype == torch.float32 and losses.total.shape == ()


@pytest.mark.usefixtures("h100")
def test_it_notices_a_tensor_on_the_cpu_and_a_value_that_is_waited_for() -> None:
    config = load_config(CONFIGS / "quickstart.yaml")
    with FakeTensorMode():
        model, batch = fake_model(config), fake_batch(config)
        with pytest.raises(Exception, match="two devices, cpu and cuda:0"):
            model(batch.x.cuda(), batch.t, batch.labels.cuda())
        with pytest.raises(DataDependentOutputException):
            model(batch.x.cuda(), batch.t.cuda(), batch.labels.cuda()).sum().item()
