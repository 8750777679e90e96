"""Tiny runs on the emoji, as a file and really trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.training.runs import run, tiny
from tread_ssm.config.run import RoutingConfig, SampleConfig
from tread_ssm.diffusion import EDM
from tread_ssm.routing import Route
from tread_ssm.training.averages.power_ema import PosthocEma
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
    config = tiny(
        out,
        steps=30,
        batch_size=16,
        log_every=50,
        optimizer=AdamWConfig(lr=3e-3),
        save_every=20,
        ema_decay=0.5,
        posthoc_ema=posthoc_ema,
    )
    config = replace(
        config,
        name="run",
        model=replace(config.model, dim=32),
        objective=EDM(),
        routing=RoutingConfig(routes=(Route(1, 3),)),
        sample=SampleConfig(every=0, steps=sampling_steps, guidance=1.5),
    )
    run(config)
    return config.folder.path
