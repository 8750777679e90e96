"""Weights and their description: what sampling and evaluation need of a run, and no more.

`ema.safetensors` holds the averaged weights under the model's own names, `config.json` the
model, the objective, the class names and what the values of the data mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tread_ssm.diffusion import Objective
from tread_ssm.models import ModelConfig, build_model
from tread_ssm.routing import Route
from tread_ssm.training.config import SampleConfig
from tread_ssm.training.sources import Values
from tread_ssm.training.strict import ConfigError, Source, build, plain


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


def load_export(folder: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Export]:
    """The model with its averaged weights, in eval mode, and its description.

    Raises ConfigError where a file is missing or does not fit.
    """
    for name in ("config.json", "ema.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}; it is no finished run or checkpoint.")
    text = (folder / "config.json").read_text(encoding="utf-8")
    try:
        source = Source(json.loads(text), str(folder / "config.json"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{folder / 'config.json'}: not valid JSON: {error}.") from None
    description = build(Export, source)
    model = build_model(description.model)
    try:
        model.load_state_dict(load_file(str(folder / "ema.safetensors")))
    except RuntimeError as error:
        raise ConfigError(f"{folder}: the weights do not fit the model: {error}") from None
    return model.to(device).eval().requires_grad_(False), description
