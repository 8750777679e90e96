"""The image grids that show a run's progress: always the same noise, one row per class."""

from __future__ import annotations

import torch
from torch import nn

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.pretrained import Description
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import save_grid, spread, to_uint8


class Preview:
    """Samples and writes samples/step-0001000.png in the run folder."""

    def __init__(self, run: Description, folder: RunFolder, seed: int) -> None:
        self._run, self._folder = run, folder
        n_classes = run.model.n_classes
        rows = spread(n_classes, run.sample.classes) if n_classes else [0]
        self._names = [run.class_names[r] for r in rows] if n_classes else [""]
        self._labels = torch.tensor(rows).repeat_interleave(run.sample.per_class)
        self._seed = seed

    def write(self, model: nn.Module, step: int, *, write: bool) -> None:
        """Every process samples the grid after `step` steps, the one with `write` writes it."""
        run = self._run
        model.eval()
        # A compiled model would be compiled again for these shapes.
        with torch.compiler.set_stance("force_eager"):
            images = generate_all(
                model,
                run,
                run.sample.recipe,
                self._labels,
                seed=self._seed,
                decode=lambda x: to_uint8(x, run.values),
                batch=len(self._labels),
            )
        model.train()
        if write:
            save_grid(self._folder.sample_grid(step), images, self._names)
