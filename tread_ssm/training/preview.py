"""The grids that show a run's progress: always the same noise, one row per class."""

from __future__ import annotations

import torch
from torch import nn

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.sampling.generate import sample_images, starting_noise
from tread_ssm.sampling.image_grid import save_grid, spread, to_uint8


class Preview:
    """Draws and writes runs/NAME/samples/step-0001000.png."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device) -> None:
        self._config, self._values = config, data.values
        options, n_classes = config.sample, config.model.n_classes
        rows = spread(n_classes, options.classes) if n_classes else [0]
        self._names = [data.class_names[r] for r in rows] if n_classes else [""]
        self._labels = torch.tensor(rows, device=device).repeat_interleave(options.per_class)
        self._noise = starting_noise(len(self._labels), config.model, config.seed).to(device)

    def write(self, model: nn.Module, step: int, *, write: bool) -> None:
        """Draw the grid after `step` steps; every process draws, the one with `write` writes."""
        options = self._config.sample
        model.eval()
        # A compiled model would be compiled again for these shapes.
        with torch.compiler.set_stance("force_eager"):
            images = sample_images(
                model,
                self._config.objective,
                self._noise,
                self._labels,
                null_label=self._config.model.n_classes,
                steps=options.steps,
                guidance=options.guidance,
                sampler=options.sampler,
            )
        model.train()
        if write:
            path = self._config.folder.sample_grid(step)
            save_grid(path, to_uint8(images, self._values), self._names)
