"""A tiny routed run on the emoji, trained in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from tread_ssm.config.check import check
from tread_ssm.config.run import RoutingConfig, RunConfig, SampleConfig, TrainConfig
from tread_ssm.data import EmojiData
from tread_ssm.diffusion import Flow
from tread_ssm.models import DiMConfig
from tread_ssm.routing import Route
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig


def tiny(out: Path, **train_options: object) -> RunConfig:
    """A run of six steps, every one of which is logged."""
    options: dict[str, object] = {"steps": 6, "batch_size": 4, "log_every": 1}
    options |= {"optimizer": AdamWConfig(lr=1e-3)}
    return RunConfig(
        name="tiny",
        out=str(out),
        data=EmojiData(size=8),
        model=DiMConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=3, pads=1),
        objective=Flow(),
        routing=RoutingConfig(routes=(Route(0, 2),)),
        train=TrainConfig(**(options | train_options)),  # type: ignore[arg-type]
        sample=SampleConfig(every=0),
    )


def run(config: RunConfig) -> list[dict[str, float]]:
    """Train to the end, as a process of its own; returns the logged rows."""
    assert train(config, check(config)) is None
    AcceleratorState._reset_state(reset_partial_state=True)
    return read_metrics(config.folder.metrics)


def losses(rows: list[dict[str, float]]) -> Tensor:
    """(rows, 2) loss and gradient norm."""
    return torch.tensor([[r["loss"], r["grad_norm"]] for r in rows])
