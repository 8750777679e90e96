"""`train.init_from`: the weights of another network as the start of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import UNREADABLE, load_export

_MOST_NAMES = 20


@dataclass(frozen=True)
class Initial:
    """Weights that start a run.

    Attributes:
        source: Where they come from.
        taken: Those that the network has, with the same shape, by its names.
        left_out: Names of the others, with the shapes where both have one.
        new: Names of what the network has and the source does not: it stays freshly initialised.
        note: How the source was trained otherwise; "" where nothing is known.
    """

    source: Path
    taken: Mapping[str, Tensor]
    left_out: tuple[str, ...]
    new: tuple[str, ...]
    note: str

    def __str__(self) -> str:
        parts = [f"train.init_from: {len(self.taken)} tensors of {self.source} start this run"]
        for what, names in (("left out", self.left_out), ("new", self.new)):
            if names:
                more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:_MOST_NAMES])}{more}")
        return "; ".join(parts) + "." + self.note


def initial_weights(config: RunConfig) -> Initial | None:
    """What starts a run; None: nothing does, or the run has checkpoints and resumes from them.

    Raises:
        ConfigError: The source cannot be read, or nothing of it fits the network.
    """
    if config.train.init_from is None or config.folder.checkpoints():
        return None
    source = Path(config.train.init_from)
    weights, note = _read(source, config)
    with torch.device("meta"):
        own = config.model.build().state_dict()
    taken = {n: t for n, t in weights.items() if n in own and own[n].shape == t.shape}
    if not taken:
        raise ConfigError(
            f"train.init_from: none of the {len(weights)} tensors in {source} has the name and the "
            f"shape of one of this network's; convert foreign weights first (tread-ssm convert)."
        )
    left_out = tuple(
        f"{n} ({_shape(t)} there, {_shape(own[n])} here)" if n in own else n
        for n, t in weights.items()
        if n not in taken
    )
    return Initial(source, taken, left_out, tuple(n for n in own if n not in taken), note)


def start_from_weights(model: nn.Module, config: RunConfig) -> None:
    """Give a new run's network the weights of `train.init_from`. Raises ConfigError."""
    found = initial_weights(config)
    if found is not None:
        model.load_state_dict(dict(found.taken), strict=False)


def _read(source: Path, config: RunConfig) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a folder or a file, and what was otherwise in their training."""
    if source.is_dir():
        model, run = load_export(source)
        if run.objective == config.objective:
            return model.state_dict(), ""
        note = f" They were trained with {run.objective}, and this run has {config.objective}."
        return model.state_dict(), note
    if not source.is_file():
        raise ConfigError(f"train.init_from: {source} is neither a folder nor a file.")
    try:
        if source.suffix == ".safetensors":
            return load_file(str(source)), ""
        held: Any = torch.load(source, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"train.init_from: {source} cannot be read ({reason}).") from None
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise ConfigError(
            f"train.init_from: {source} holds no tensors by their names; save a state dict."
        )
    return held, ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
