"""Averages of a run's weights with a width that is chosen after training (EDM2, arXiv 2312.02696).

Training keeps two power-function averages and writes snapshots of them, folders
`snapshots/step-0005000` that hold `width-0.05.safetensors`, `width-0.1.safetensors`,
`config.json` and `manifest.json`. Any other average of the same run is very nearly a sum of those
snapshots, each with a weight of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError
from tread_ssm.files import check_checksums
from tread_ssm.pretrained import Description, read_description
from tread_ssm.training.averages.power_ema import Profile, gamma_of, weights_of, width_in


def reconstruct(
    folder: RunFolder, width: float, step: int | None = None
) -> tuple[dict[str, Tensor], Description]:
    """The average of a run with a width of choice.

    Args:
        folder: Of a run that kept snapshots (train.posthoc_ema).
        width: Of the average, see `gamma_of`.
        step: The step at which the average ends. None: the last snapshot's.

    Returns:
        The model's state dict on the CPU, float32, and its description.

    Raises:
        ConfigError: A ValueError. There are no snapshots, none of that step, or a damaged one.
    """
    found = folder.snapshots()
    if not found:
        raise ConfigError(
            f"{folder.path} holds no snapshots to average; train with "
            f"train.posthoc_ema={{every: 5000}}."
        )
    end = max(found) if step is None else step
    if end not in found:
        steps = ", ".join(map(str, found))
        raise ConfigError(f"{folder.path} has no snapshot of step {end}; there are {steps}.")
    try:
        wanted = Profile(gamma_of(width), end)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    files: list[Path] = []
    profiles: list[Profile] = []
    for at, snapshot in found.items():
        if at > end:
            continue
        check_checksums(snapshot)
        for file in sorted(snapshot.glob("width-*.safetensors")):
            files.append(file)
            profiles.append(Profile(gamma_of(width_in(file)), at))
    return _sum(files, weights_of(profiles, wanted)), read_description(found[end])


def _sum(files: Sequence[Path], weights: np.ndarray) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for path, weight in zip(files, weights, strict=True):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no dict)
                part = file.get_tensor(name).to(torch.float64) * float(weight)
                total[name] = total[name].add_(part) if name in total else part
    return {name: tensor.to(torch.float32) for name, tensor in total.items()}


def load_average(
    folder: RunFolder, width: float, step: int | None, device: torch.device | str
) -> tuple[nn.Module, Description]:
    """The model with a reconstructed average, in eval mode, and its description.

    Args:
        folder, width, step: As for `reconstruct`.
        device: Where the model goes.

    Raises:
        ConfigError: As `reconstruct`.
    """
    weights, description = reconstruct(folder, width, step)
    model = description.model.build()
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False), description
