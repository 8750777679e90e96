"""A tiny run that samples in milliseconds, its weights drawn at random."""

from __future__ import annotations

from pathlib import Path

import torch

from tread_ssm import Route
from tread_ssm.config.run import SampleConfig
from tread_ssm.data import PixelValues
from tread_ssm.diffusion import Flow
from tread_ssm.models import DiTConfig
from tread_ssm.pretrained import Description, export


def write_run(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog", "bird"), *, routed: bool = True
) -> Path:
    """Write the files of a finished run; returns the folder."""
    torch.manual_seed(0)
    config = DiTConfig(
        image_size=16, channels=3, n_classes=len(classes), patch=2, dim=32, depth=4, heads=2
    )
    model = config.build()
    with torch.no_grad():  # published DiTs start at zero, which looks at nothing
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    routes = (Route(1, 3),) if routed else ()
    sample = SampleConfig(steps=3, guidance=1.5)
    described = Description(5, config, Flow(), classes, PixelValues(), routes, sample)
    export(folder, model.state_dict(), described)
    return folder
