"""Weights and their description: what sampling and evaluation need of a run, and no more.

`ema.safetensors` holds the averaged weights under the model's own names, `config.json` the
model, the objective, the class names and what the values of the data mean. The two files make a
model on the Hugging Face Hub, too: hf upload USER/NAME FOLDER --include ema.safetensors
--include config.json
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tread_ssm.config.run import SampleConfig
from tread_ssm.config.strict import Source, build, plain
from tread_ssm.data import Values
from tread_ssm.diffusion import Objective
from tread_ssm.errors import ConfigError
from tread_ssm.models import ModelConfig
from tread_ssm.routing import Route

FILES = ("config.json", "ema.safetensors")


# What reading a damaged file of tensors or of JSON raises.
UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(pickle.UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class Export:
    """The description in config.json.

    step:   training steps behind the weights.
    values: what the model's numbers mean: pixels in a range, or scaled latents.
    routes: the routes it was trained with.
    sample: how the run drew its own grids; the defaults of sampling.
    """

    step: int
    model: ModelConfig
    objective: Objective
    class_names: tuple[str, ...]
    values: Values
    routes: tuple[Route, ...]
    sample: SampleConfig


def export(folder: Path, weights: Mapping[str, Tensor], description: Export) -> None:
    """Write both files into `folder`, each whole or not at all."""
    temporary = folder / "ema.safetensors.tmp"
    save_file({n: t.contiguous().cpu() for n, t in weights.items()}, str(temporary))
    os.replace(temporary, folder / "ema.safetensors")
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(plain(description), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "config.json")


def exported_step(folder: Path) -> int | None:
    """The training steps behind the weights in a folder; None where they are not complete."""
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        step = json.loads(text)["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(step) if (folder / "ema.safetensors").is_file() else None


def load_export(folder: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Export]:
    """The model with its averaged weights, in eval mode, and its description.

    Raises ConfigError where a file is missing or does not fit.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}; it is no finished run or checkpoint.")
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        source = Source(json.loads(text), str(folder / "config.json"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder / 'config.json'}: not valid JSON: {error}.") from None
    description = build(Export, source)
    model = description.model.build()
    try:
        weights = load_file(str(folder / "ema.safetensors"))
    except UNREADABLE as error:
        raise ConfigError(f"{folder / 'ema.safetensors'} cannot be read: {error}.") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{folder}: the weights do not fit the model: {error}") from None
    return model.to(device).eval().requires_grad_(False), description


def from_pretrained(
    name: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Export]:
    """The model with its averaged weights, in eval mode, and its description.

        model, run = tread_ssm.from_pretrained("runs/quickstart")

    name:     a folder that holds the two files (a finished run or a checkpoint), or else a model
              on the Hugging Face Hub or in its cache, "user/name".
    revision: branch, tag or commit of a model on the Hub.

    Raises ConfigError, a ValueError, where there is no such model or it does not fit.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(str(name), revision)
    return load_export(folder, device)


def _from_hub(name: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"{name} is no folder, and no name on the Hugging Face Hub (user/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # not there, no network, no such revision
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ConfigError(
            f"{name} is no folder, and cannot be had from the Hugging Face Hub: {reason}."
        ) from None
