"""Checkpoints that are either complete or not there.

A checkpoint is a folder `checkpoints/step-0001000`: `model.safetensors` (the weights),
`optimizer.pt` (the optimiser's state by parameter name, and the scaler's), `ema.safetensors`,
`config.json` and `state.json`. It holds whole tensors under the model's own names, however many
processes wrote it and however the parameters were spread over them; any other number of them goes
on from it. It is written under a temporary name, flushed to the disk and renamed; whatever bears
the final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from tread_ssm.config.run import RunConfig
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import UNREADABLE, Export, export
from tread_ssm.training.ema import Ema


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


@dataclass(frozen=True)
class Trained:
    """What a checkpoint keeps of a run: all of it is changed in place by `load`."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema


def save(config: RunConfig, progress: Progress, trained: Trained, description: Export) -> None:
    """Write a checkpoint and remove all but the newest few. Every process calls it."""
    accelerator = trained.accelerator
    final = config.folder.checkpoint(progress.step)
    temporary = final.with_name("tmp-" + final.name)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optimizer = _unwrapped(trained.optimizer)
    weights, moments = get_state_dict(trained.model, optimizer, options=options)
    average = trained.ema.state(trained.model, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        for left_over in final.parent.glob("tmp-*"):
            shutil.rmtree(left_over)
        temporary.mkdir(parents=True)
        tensors = {n: t.contiguous() for n, t in weights.items() if isinstance(t, torch.Tensor)}
        save_file(tensors, str(temporary / "model.safetensors"))
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        torch.save({"optimizer": moments, "scaler": scaler}, temporary / "optimizer.pt")
        export(temporary, average, description)
        (temporary / "state.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
        _publish(temporary, final)
        for old in list(config.folder.checkpoints().values())[: -config.train.keep]:
            # Renamed first: a removal that is cut short must not leave half a checkpoint.
            gone = old.with_name("tmp-" + old.name)
            os.replace(old, gone)
            shutil.rmtree(gone)
    accelerator.wait_for_everyone()


def load(path: Path, trained: Trained) -> Progress:
    """Continue from a checkpoint. Every process calls it and reads the files.

    Raises ConfigError where it is damaged, or not of this format.
    """
    try:
        return _load(path, trained)
    except torch.OutOfMemoryError:
        raise
    except (*UNREADABLE, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read ({reason}); it is damaged, or of another version. Remove that "
            f"folder, and the same command goes on from the checkpoint before it."
        ) from None


def _load(path: Path, trained: Trained) -> Progress:
    accelerator = trained.accelerator
    # Read where it is needed, not copied by each process first; on CPUs it would stay a file.
    mapped = accelerator.device.type != "cpu"
    stored = torch.load(path / "optimizer.pt", map_location="cpu", mmap=mapped, weights_only=True)
    set_state_dict(
        trained.model,
        _unwrapped(trained.optimizer),
        model_state_dict=dict(load_file(str(path / "model.safetensors"))),
        optim_state_dict=stored["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
    if accelerator.scaler is not None and stored["scaler"] is not None:
        accelerator.scaler.load_state_dict(stored["scaler"])
    trained.ema.load(load_file(str(path / "ema.safetensors")))
    return Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """torch's optimiser inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _publish(temporary: Path, final: Path) -> None:
    """Flush a folder to the disk and give it its final name."""
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
