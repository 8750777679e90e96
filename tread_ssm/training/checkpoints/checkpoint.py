"""Checkpoints that are either complete or not there.

A checkpoint is a folder `checkpoints/step-0001000`: `model.safetensors` (the weights),
`optimizer.pt` (the optimiser's state by parameter name, and the scaler's), `ema.safetensors`,
`config.json`, `state.json`, the averages of post-hoc EMA where they are kept, and `manifest.json`
with a checksum of each. It holds whole tensors under the model's own names, however many processes
wrote it and however the parameters were spread over them; any other number of them resumes from it.
It is written under a temporary name, flushed to the disk and renamed; whatever bears the final name
is whole. So are the snapshots of post-hoc EMA. They stay, unless they are behind the step that
training resumes from.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError
from tread_ssm.files import check_checksums, read_json, replacing, write_checksums, write_json
from tread_ssm.pretrained import UNREADABLE, Description, export, write_description
from tread_ssm.processes import gathered, world
from tread_ssm.training.averages.ema import Ema
from tread_ssm.training.averages.power_ema import file_of

_FILES = ("model.safetensors", "optimizer.pt", "state.json")
_TEMPORARY = "tmp-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        seconds: Time spent in training steps, over all sessions.
        window: The numbers of the steps since the last logged row.
    """

    step: int
    seconds: float
    window: list[list[float]]


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds of a run; `resume` changes all of it in place.

    Attributes:
        accelerator: Of this process; it holds the scaler of fp16.
        model: The network, with the heads of auxiliary losses where there are any.
        optimizer: Of its parameters.
        ema: The moving average of the network's.
        powers: Power-function averages of the same by their width, see `PosthocEma`.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    powers: Mapping[float, Ema] = field(default_factory=dict)


def save(
    folder: RunFolder, retain: int, progress: Progress, trained: Trained, description: Description
) -> None:
    """Write a checkpoint and remove all but the newest few. Every process calls it.

    Args:
        folder: Of the run.
        retain: Checkpoints that stay.
        progress: Where the run stands.
        trained: What to save.
        description: Of the averaged weights.

    Raises:
        OSError: It cannot be written; the checkpoints before it are untouched.
    """
    accelerator = trained.accelerator
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optimizer = _unwrapped(trained.optimizer)
    weights, moments = get_state_dict(trained.model, optimizer, options=options)
    average = trained.ema.state(gather=accelerator.is_main_process)
    powers = _gathered(trained)
    if accelerator.is_main_process:
        final = folder.checkpoint(progress.step)
        tidy(folder)
        with _publishing(final, f"the checkpoint of step {progress.step}") as temporary:
            with replacing(temporary / "model.safetensors") as path:
                tensors = {n: t.contiguous() for n, t in weights.items() if isinstance(t, Tensor)}
                save_file(tensors, path)
            with replacing(temporary / "optimizer.pt") as path:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                torch.save({"optimizer": moments, "scaler": scaler}, path)
            write_json(temporary / "state.json", vars(progress))
            also = (*_FILES, *_write_averages(temporary, powers))
            export(temporary, average, description, also=also)
        for old in list(folder.checkpoints().values())[:-retain]:
            _remove(old)
    accelerator.wait_for_everyone()


def save_snapshot(folder: RunFolder, step: int, trained: Trained, description: Description) -> None:
    """Write the power-function averages after `step` steps. Every process calls it.

    Raises:
        OSError: They cannot be written; the snapshots before them are untouched.
    """
    powers = _gathered(trained)
    if trained.accelerator.is_main_process:
        with _publishing(folder.snapshot(step), f"the snapshot of step {step}") as temporary:
            names = _write_averages(temporary, powers)
            write_description(temporary, description)
            write_checksums(temporary, (*names, "config.json"))
    trained.accelerator.wait_for_everyone()


def tidy(folder: RunFolder) -> None:
    """Remove what a process that was killed left half written."""
    for parent in (folder.checkpoint(0).parent, folder.snapshot(0).parent):
        for left_over in parent.glob(_TEMPORARY + "*"):
            shutil.rmtree(left_over, ignore_errors=True)


def resume(folder: RunFolder, start_from: Path | None, trained: Trained) -> Progress:
    """Load the newest checkpoint that is whole. Every process calls it.

    A damaged one is named and set aside, and the one before it is taken. Snapshots of post-hoc EMA
    behind the step that training resumes from are removed, as rows of metrics.jsonl are.

    Args:
        folder: Of the run.
        start_from: The checkpoint to take where the run has none; None: start anew.
        trained: What to load into.

    Raises:
        ConfigError: No checkpoint can be loaded, although there are some.
    """
    found: Path | ConfigError | None = None
    if world()[0] == 0:
        try:
            found = _newest_whole(folder)
            if found is None and start_from is not None:
                check_checksums(start_from)
                found = start_from
        except ConfigError as error:
            found = error
    found = gathered(found)[0]
    if isinstance(found, ConfigError):
        raise found
    start = Progress(step=0, seconds=0.0, window=[]) if found is None else load(found, trained)
    if world()[0] == 0:
        for step, snapshot in folder.snapshots().items():
            if step > start.step:  # of an attempt that is made anew, perhaps with other settings
                _remove(snapshot)
    return start


def load(path: Path, trained: Trained) -> Progress:
    """Continue from a checkpoint. Every process calls it and reads the files.

    Raises:
        ConfigError: It is damaged, or not of this format.
    """
    try:
        return _load(path, trained)
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except (*UNREADABLE, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read ({reason}); it is damaged, or of another model or version. "
            f"Remove that folder and rerun the command to resume from the checkpoint before it."
        ) from None


def _newest_whole(folder: RunFolder) -> Path | None:
    """The newest checkpoint whose files are as they were written; None: there is none at all."""
    found = sorted(folder.checkpoints().items(), reverse=True)
    damaged: list[tuple[Path, str]] = []
    for _, path in found:
        try:
            check_checksums(path)
        except ConfigError as error:
            damaged.append((path, str(error)))
            continue
        for other, reason in damaged:
            aside = other.with_name("damaged-" + other.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(other, aside)
            print(f"warning: {reason} It is {aside.name} now.", file=sys.stderr)
        if damaged:
            print(f"Training resumes from {path.name} instead.", file=sys.stderr)
        return path
    if damaged:
        raise ConfigError(
            f"{damaged[0][1]} No checkpoint in {folder.path} is whole; remove them to start anew."
        )
    return None


def _load(path: Path, trained: Trained) -> Progress:
    accelerator, optimizer = trained.accelerator, _unwrapped(trained.optimizer)
    # Read where it is needed, not copied by each process first; on CPUs it would stay a file.
    mapped = accelerator.device.type != "cpu"
    stored = torch.load(path / "optimizer.pt", map_location="cpu", mmap=mapped, weights_only=True)
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(
        trained.model, dict(load_file(str(path / "model.safetensors"))), options=whole
    )
    # A parameter that no step has used yet, such as a mask token of dense steps, has no state; it
    # gets one here in passing, and must not keep it.
    set_optimizer_state_dict(
        trained.model, optimizer, stored["optimizer"], options=replace(whole, strict=False)
    )
    for name, parameter in trained.model.named_parameters():
        if name not in stored["optimizer"]["state"]:
            optimizer.state.pop(parameter, None)
    # The configuration says how to go on; a run that starts from another's may decay otherwise.
    for group, chosen in zip(optimizer.param_groups, options, strict=True):
        group.update(chosen)
    if accelerator.scaler is not None and stored["scaler"] is not None:
        accelerator.scaler.load_state_dict(stored["scaler"])
    trained.ema.load(load_file(str(path / "ema.safetensors")))
    for width, power in trained.powers.items():
        file = path / file_of(width)
        if not file.is_file():
            raise ConfigError(
                f"{path} holds no average of width {width:g}: it was trained without it. Set "
                f"train.posthoc_ema to null."
            )
        power.load(load_file(str(file)))
    return Progress(**read_json(path / "state.json"))


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """torch's optimiser inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _beside(path: Path) -> Path:
    """A name in the same folder that `checkpoints` does not see and nothing else has."""
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}-{path.name}")


def _gathered(trained: Trained) -> dict[float, dict[str, Tensor]]:
    """The states of the power-function averages; empty ones on all processes but the first."""
    main = trained.accelerator.is_main_process
    return {width: power.state(gather=main) for width, power in trained.powers.items()}


def _write_averages(folder: Path, powers: Mapping[float, Mapping[str, Tensor]]) -> list[str]:
    """Write a file for each average; returns their names."""
    for width, state in powers.items():
        with replacing(folder / file_of(width)) as path:
            save_file({n: t.contiguous().cpu() for n, t in state.items()}, path)
    return [file_of(width) for width in powers]


@contextmanager
def _publishing(final: Path, what: str) -> Iterator[Path]:
    """A folder to write into; it gets its final name when all is written, or is removed."""
    temporary = _beside(final)
    try:
        yield temporary
        _publish(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"{what} cannot be written to {final.parent} ({str(error).splitlines()[0]}); make room "
            f"or mend the folder, then rerun the command to resume from the newest checkpoint."
        ) from None


def _publish(temporary: Path, final: Path) -> None:
    """Give a folder of flushed files its final name."""
    _flush(temporary)
    if final.is_dir():
        _remove(final)
    os.replace(temporary, final)
    _flush(final.parent)


def _remove(path: Path) -> None:
    """Remove a checkpoint; where that fails, training need not end for it."""
    # Renamed first: a removal that is cut short must not leave half a checkpoint.
    gone = _beside(path)
    try:
        os.replace(path, gone)
    except OSError as error:
        print(f"warning: {path} cannot be removed ({error.strerror}).", file=sys.stderr)
    else:
        shutil.rmtree(gone, ignore_errors=True)


def _flush(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
