"""Tiny runs on the emoji, as a file and really trained."""

from __future__ import annotations

from pathlib import Path

from accelerate.state import AcceleratorState

from tread_ssm.config.check import check
from tread_ssm.config.run import RoutingConfig, RunConfig, SampleConfig, TrainConfig
from tread_ssm.data import EmojiData
from tread_ssm.diffusion import EDM
from tread_ssm.models import DiMConfig
from tread_ssm.routing import Route
from tread_ssm.training.averages.power_ema import PosthocEma
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig

# The section `train` is missing: how long, and what is saved.
TINY = """
name: tiny
data: {kind: emoji, size: 8, flip: true}
model: {kind: dim, image_size: 8, channels: 3, n_classes: 9, dim: 16, depth: 3, pads: 1}
objective: {kind: flow}
routing:
  routes: [{start: 0, stop: 2, drop: 0.5}]
sample: {every: 0}
"""


def trained(out: Path, *, sampling_steps: int, posthoc_ema: PosthocEma | None = None) -> Path:
    """The folder of a run of 30 steps, with checkpoints of steps 20 and 30, guided by 1.5."""
    config = RunConfig(
        name="run",
        out=str(out),
        data=EmojiData(size=8),
        model=DiMConfig(image_size=8, channels=3, n_classes=9, dim=32, depth=3, pads=1),
        objective=EDM(),
        routing=RoutingConfig(routes=(Route(1, 3),)),
        train=TrainConfig(
            steps=30,
            batch_size=16,
            optimizer=AdamWConfig(lr=3e-3),
            save_every=20,
            ema_decay=0.5,
            posthoc_ema=posthoc_ema,
        ),
        sample=SampleConfig(every=0, steps=sampling_steps, guidance=1.5),
    )
    assert train(config, check(config)) is None
    AcceleratorState._reset_state(reset_partial_state=True)
    return config.folder.path
