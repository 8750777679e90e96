"""The dense network's loss on samples that are not trained on.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.diffusion import Objective
from tread_ssm.processes import even_share, gathered, world
from tread_ssm.randomness import generator
from tread_ssm.sampling.generate import shares

# Fewer samples are met at several noise levels; of more, the first ones are taken.
_LEAST, _MOST = 256, 2048


@dataclass(frozen=True)
class Validation:
    """Always the same samples, noise levels and noise; those of training have no part in it.

    Attributes:
        data: The data set.
        samples: Numbers of those held out.
        objective: Gives the loss of each element.
        null_label: The network's label for "no class"; 0 where it has no classes.
        batch: Samples that a process looks at together.
        device: Where to compute.
    """

    data: Data
    samples: np.ndarray
    objective: Objective
    null_label: int
    batch: int
    device: torch.device

    @classmethod
    def of(
        cls, config: RunConfig, data: Data, samples: np.ndarray, device: torch.device
    ) -> Validation:
        """The validation of a run."""
        batch = config.train.micro_batch or config.train.batch_size // world()[1]
        return cls(data, samples, config.objective, config.model.n_classes, batch, device)

    @property
    def count(self) -> int:
        """Losses that are averaged: one for each sample, or for each of its noise levels."""
        n = len(self.samples)
        return min(_MOST, n * max(1, -(-_LEAST // n)))

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """The mean loss of the dense network, with labels and without routes.

        Every process calls it, with the same weights.
        """
        model.eval()
        mine, idle = even_share(shares(self.count, self.batch))
        # A compiled model would be compiled again for these shapes.
        with torch.compiler.set_stance("force_eager"):
            found = [self._losses(model, numbers) for numbers in mine + idle]
        model.train()
        parts = [part for theirs in gathered(found[: len(mine)]) for part in theirs]
        return float(np.concatenate(parts).mean())

    def _losses(self, model: nn.Module, numbers: range) -> np.ndarray:
        """(B,) the losses of these numbers; number i is the same on any number of processes."""
        index = self.samples[np.array(numbers) % len(self.samples)]
        augmentations, ts, noises = zip(*map(self._random, numbers), strict=True)
        augmentation = tuple(torch.cat(parts) for parts in zip(*augmentations, strict=True))
        x = self.data.read(index, augmentation).to(self.device)
        t, noise = (torch.cat(parts).to(self.device) for parts in (ts, noises))
        labels = torch.from_numpy(self.data.labels[index]).to(self.device)
        if self.null_label == 0:
            labels = torch.zeros_like(labels)
        terms = self.objective.loss_terms(model, x, labels, t, noise, ())
        return terms.loss_map.mean(dim=(1, 2, 3)).cpu().numpy()

    def _random(self, number: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Augmentation, t (1,) and noise (1, C, H, W) of a loss: a function of its number."""
        rng = generator(0, number, "validation")
        augmentation = self.data.sample_augmentation(1, rng)
        t = self.objective.sample_t(1, rng)
        return augmentation, t, torch.randn(1, *self.data.shape, generator=rng)
