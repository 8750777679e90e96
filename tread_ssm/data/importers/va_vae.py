"""VA-VAE (LightningDiT): safetensors shards of samples, and statistics of their channels.

A shard holds `latents` (n, C, h, w), `latents_flip` (the mirrored images) and `labels` (n,). The
file latents_stats.pt holds `mean` and `std`, (1, C, 1, 1), by which latents are normalised before a
model sees them. Latents of other autoencoders with 16 x 16 pixels to a place come in this form too.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tread_ssm.data.importers.imported import Imported, from_sample, label_array
from tread_ssm.data.values import LatentValues

_STATISTICS = "latents_stats.pt"
_NOTE = (
    "The shards hold one sample of each posterior and no variance; training will see the same "
    "latents in each epoch."
)


def open_va_vae(path: Path, scale: float | None) -> Imported:
    """The shards of a folder, in the order of their names.

    Args:
        path: The folder.
        scale: Deviation of the channels that a model sees. None: 1.

    Raises:
        ValueError: A file is missing or damaged, or holds something else.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        raise ValueError(f"{path} is no folder with .safetensors files.")
    shards = [_Shard(file) for file in files]
    starts = np.cumsum([0, *(shard.count for shard in shards)])
    mean, deviation = _statistics(path / _STATISTICS)
    labels = label_array((k for shard in shards for k in shard.labels), str(path))

    def of(name: str) -> Callable[[int], np.ndarray]:
        def one(i: int) -> np.ndarray:
            number = int(np.searchsorted(starts, i, side="right")) - 1
            return shards[number].sample(name, i - int(starts[number]))

        return one

    values = LatentValues(scale=1.0 if scale is None else scale, mean=mean, deviation=deviation)
    flips = [shard.has_flip for shard in shards]
    mirrored = of("latents_flip") if all(flips) else None
    notes = (_NOTE,) if all(flips) or not any(flips) else (_NOTE, "Mirrored images are left out.")
    return Imported(int(starts[-1]), labels, of("latents"), values, notes, mirrored=mirrored)


class _Shard:
    """One file, whose samples are read one at a time."""

    def __init__(self, file: Path) -> None:
        try:
            self._tensors = safe_open(file, framework="pt")
            names = set(self._tensors.keys())
            if not {"latents", "labels"} <= names:
                raise ValueError(f"it holds {', '.join(sorted(names))}, not latents and labels")
            self.labels = self._tensors.get_tensor("labels").flatten().tolist()
            self.count = len(self.labels)
            self.has_flip = "latents_flip" in names
            for name in ("latents", "latents_flip")[: 1 + self.has_flip]:
                shape = self._tensors.get_slice(name).get_shape()
                if len(shape) != 4 or shape[0] != self.count:
                    raise ValueError(f"{name} has shape {shape} for {self.count} labels")
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be used: {error}.") from None
        self._file = file

    def sample(self, name: str, row: int) -> np.ndarray:
        """Moments of row `row` of a tensor."""
        sample = self._tensors.get_slice(name)[row : row + 1][0].float().numpy()
        return from_sample(sample, f"{name} of {self._file}", 1.0)


def _statistics(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The channels' means and deviations."""
    if not file.is_file():
        raise ValueError(
            f"{file} is missing; it holds the mean and std of each channel, by which the project "
            f"normalises its latents, and comes with them."
        )
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        mean, deviation = (held[name].flatten().tolist() for name in ("mean", "std"))
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError) as error:
        raise ValueError(f"{file} holds no tensors `mean` and `std` ({error}).") from None
    except (AttributeError, TypeError):
        raise ValueError(f"{file} holds no tensors `mean` and `std`.") from None
    return tuple(mean), tuple(deviation)
