"""Weights and their description: what sampling and evaluation need of a run, and no more.

`ema.safetensors` holds the averaged weights under the model's own names, `config.json` the
model, the objective, the class names and what the values of the data mean, `manifest.json` a
checksum of both. The three files make a model on the Hugging Face Hub, too:
hf upload USER/NAME FOLDER --include ema.safetensors --include config.json --include manifest.json
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tread_ssm.config.run import SampleConfig
from tread_ssm.config.strict import Document, build, plain
from tread_ssm.data import Values
from tread_ssm.diffusion import Objective
from tread_ssm.errors import ConfigError
from tread_ssm.files import (
    MANIFEST,
    check_checksums,
    read_json,
    replacing,
    write_checksums,
    write_json,
)
from tread_ssm.models import ModelConfig
from tread_ssm.routing import Route

_COVERED = ("config.json", "ema.safetensors")
FILES = (*_COVERED, MANIFEST)


# What reading a damaged file of tensors or of JSON raises.
UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError),
    *(pickle.UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class Description:
    """What the weights are, as config.json says it.

    Attributes:
        step: Training steps behind the weights.
        model: The network.
        objective: What the network was trained to predict.
        class_names: Names of the labels, in their order.
        values: What the model's numbers mean: pixels in a range, or scaled latents.
        routes: The routes it was trained with.
        sample: How the run sampled its own image grids; the defaults of sampling.
    """

    step: int
    model: ModelConfig
    objective: Objective
    class_names: tuple[str, ...]
    values: Values
    routes: tuple[Route, ...]
    sample: SampleConfig


def export(
    folder: Path, weights: Mapping[str, Tensor], description: Description, also: Iterable[str] = ()
) -> None:
    """Write the three files into `folder`, each whole or not at all.

    Args:
        folder: Made where it is missing.
        weights: The model's state dict.
        description: Of the weights.
        also: Further files in the folder that the manifest shall cover.
    """
    with replacing(folder / "ema.safetensors") as temporary:
        save_file({n: t.contiguous().cpu() for n, t in weights.items()}, temporary)
    write_description(folder, description)
    write_checksums(folder, (*_COVERED, *also))


def exported_step(folder: Path) -> int | None:
    """The training steps behind the weights in a folder; None where they are not whole."""
    try:
        step = int(read_json(folder / "config.json")["step"])
        check_checksums(folder, _COVERED)
    except (OSError, ValueError, KeyError, TypeError):  # ConfigError among them
        return None
    return step


def read_description(folder: Path) -> Description:
    """What a folder's config.json says. Raises ConfigError where that is damaged."""
    path = folder / "config.json"
    try:
        document = Document(read_json(path), str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}.") from None
    return build(Description, document)


def write_description(folder: Path, description: Description) -> None:
    """Write config.json, whole or not at all."""
    write_json(folder / "config.json", plain(description))


def load_export(folder: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, Description]:
    """The model with its averaged weights, in eval mode, and its description.

    Raises:
        ConfigError: A file is missing or damaged, or does not fit.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no {name}; it is no finished run or checkpoint.")
    check_checksums(folder, _COVERED)
    description = read_description(folder)
    model = description.model.build()
    try:
        weights = load_file(str(folder / "ema.safetensors"))
    except UNREADABLE as error:
        raise ConfigError(f"{folder / 'ema.safetensors'} cannot be read: {error}.") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{folder}: the weights do not fit the model: {error}") from None
    if not all(bool(t.isfinite().all()) for t in weights.values()):
        raise ConfigError(f"{folder}: some weights are not finite.")
    return model.to(device).eval().requires_grad_(False), description


def from_pretrained(
    name: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Description]:
    """The model with its averaged weights, in eval mode, and its description.

        model, run = tread_ssm.from_pretrained("runs/quickstart")

    Args:
        name: A folder that holds the three files (a finished run or a checkpoint), or else a model
            on the Hugging Face Hub or in its cache, "user/name".
        revision: Branch, tag or commit of a model on the Hub.
        device: Where the model goes.

    Raises:
        ConfigError: A ValueError. There is no such model, it is damaged, or it does not fit.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(str(name), revision)
    return load_export(folder, device)


def _from_hub(name: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"{name} is no folder, and no name on the Hugging Face Hub (user/name).")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # not there, no network, no such revision
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ConfigError(
            f"{name} is no folder, and cannot be had from the Hugging Face Hub: {reason}."
        ) from None
