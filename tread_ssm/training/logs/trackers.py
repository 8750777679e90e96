"""What trackers get besides numbers: image grids, and histograms of the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image
from torch import Tensor

from tread_ssm.config.run import Tracker


def wants_pictures(names: Sequence[Tracker]) -> bool:
    """Whether one of them shows pictures and histograms."""
    return bool({"tensorboard", "wandb"}.intersection(names))


def show(
    trackers: Sequence[GeneralTracker], step: int, grid: Path, weights: Mapping[str, Tensor]
) -> None:
    """Give TensorBoard and wandb an image grid and a histogram of each weight.

    Args:
        trackers: Of this process; others than these two are left out.
        step: Training steps done.
        grid: The picture's file.
        weights: By name, of any shapes and floating dtypes.
    """
    with Image.open(grid) as picture:
        image = np.asarray(picture.convert("RGB"))
    values = {f"weights/{n}": w.detach().float().cpu().numpy() for n, w in weights.items()}
    for tracker in trackers:
        if isinstance(tracker, TensorBoardTracker):
            tracker.log_images({"samples": image[None]}, step, dataformats="NHWC")
            for name, value in values.items():
                tracker.writer.add_histogram(name, value, step)
            tracker.writer.flush()
        elif isinstance(tracker, WandBTracker):
            import wandb

            tracker.log_images({"samples": [image]}, step)
            tracker.log(
                {
                    name: wandb.Histogram(np_histogram=np.histogram(value, 64))
                    for name, value in values.items()
                },
                step,
            )
