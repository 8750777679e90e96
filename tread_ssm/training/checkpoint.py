"""Checkpoints that are either complete or not there.

A checkpoint is a folder `checkpoints/step-0001000`: what accelerate saves (weights, optimiser,
scaler), `ema.safetensors`, `config.json` and `state.json`. It is written under a temporary name,
flushed to the disk and renamed; whatever bears the final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from tread_ssm.training.config import RunConfig
from tread_ssm.training.ema import Ema
from tread_ssm.training.export import Export, export

_PREFIX = "step-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    step:    steps done.
    seconds: time spent in training steps, over all sessions.
    window:  the numbers of the steps since the last logged row.
    """

    step: int
    seconds: float
    window: list[list[float]]


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [
        (int(p.name.removeprefix(_PREFIX)), p)
        for p in (run / "checkpoints").glob(_PREFIX + "*")
        if p.name.removeprefix(_PREFIX).isdigit()
    ]
    return sorted(found)


def save(
    config: RunConfig,
    progress: Progress,
    accelerator: Accelerator,
    model: nn.Module,
    ema: Ema,
    description: Export,
) -> None:
    """Write a checkpoint and remove all but the newest few. Every process calls it."""
    final = config.folder / "checkpoints" / f"{_PREFIX}{progress.step:07d}"
    temporary = final.with_name("tmp-" + final.name)
    if accelerator.is_main_process:
        for left_over in final.parent.glob("tmp-*"):
            shutil.rmtree(left_over)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        export(temporary, ema.state(model), description)
        (temporary / "state.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _publish(temporary, final)
        for _, old in checkpoints(config.folder)[: -config.train.keep]:
            # Renamed first: a removal that is cut short must not leave half a checkpoint.
            gone = old.with_name("tmp-" + old.name)
            os.replace(old, gone)
            shutil.rmtree(gone)
    accelerator.wait_for_everyone()


def load(path: Path, accelerator: Accelerator, ema: Ema) -> Progress:
    """Continue from a checkpoint: weights, optimiser and average are set in place."""
    accelerator.load_state(str(path))
    with torch.no_grad():
        ema.load(load_file(str(path / "ema.safetensors")))
    return Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))


def _publish(temporary: Path, final: Path) -> None:
    """Flush a folder to the disk and give it its final name."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(temporary, final)
