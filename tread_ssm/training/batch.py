"""Everything random about one training step, sampled for the whole batch and then cut.

The global batch's samples, mirrorings, dropped labels, t, noise and draw come from
one generator, in this order; each process and each micro-batch takes its rows. So a run is the
same run on any number of processes, and a routed run sees the same noise as a dense one.

Shape legend: B batch, C channels, H rows, W columns, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tread_ssm.config.check import features_of
from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.data.features import CachedFeatures
from tread_ssm.data.held_out import split
from tread_ssm.data.order import batch_index
from tread_ssm.diffusion import Objective
from tread_ssm.randomness import generator
from tread_ssm.routing import Draw, RoutePlan


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        x: (B, C, H, W) float32, clean samples.
        labels: (B,) int64.
        t: (B,) float32, time or noise level of each sample.
        noise: (B, C, H, W) float32, standard normal.
        draw: Which tokens each route keeps, of B samples.
        cached: (B, N, E) float32, features of the images from another network. None: not needed.
    """

    x: Tensor
    labels: Tensor
    t: Tensor
    noise: Tensor
    draw: Draw
    cached: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def part(self, rows: slice) -> Batch:
        """The batch of these rows."""
        return Batch(
            self.x[rows],
            self.labels[rows],
            self.t[rows],
            self.noise[rows],
            cut(self.draw, rows),
            None if self.cached is None else self.cached[rows],
        )

    def split(self, size: int | None) -> list[Batch]:
        """Micro-batches of at most `size` rows; None: the batch itself."""
        if size is None or size >= len(self):
            return [self]
        return [self.part(slice(i, i + size)) for i in range(0, len(self), size)]

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies while the CPU works."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; does not wait where it is pinned."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def _each(self, f: Callable[[Tensor], Tensor]) -> Batch:
        draw = tuple((route, replace(subset, index=f(subset.index))) for route, subset in self.draw)
        cached = None if self.cached is None else f(self.cached)
        return Batch(f(self.x), f(self.labels), f(self.t), f(self.noise), draw, cached)


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step.

    Attributes:
        data: What to read samples from.
        objective: Samples t.
        grid: (rows, columns) of the tokens, for the routes.
        seed: Of the run.
        size: B, of the global batch.
        null_label: The label of samples whose label is dropped; 0 where there are no classes.
        label_dropout: Share of labels dropped.
        features: Features of the images from another network. None: not needed.
        samples: Numbers of the samples to train on, in their order. None: all.
    """

    data: Data
    objective: Objective
    grid: tuple[int, int]
    seed: int
    size: int
    null_label: int
    label_dropout: float
    features: CachedFeatures | None = None
    samples: np.ndarray | None = None

    @classmethod
    def of(cls, config: RunConfig, data: Data, size: int | None = None) -> BatchMaker:
        """The batches of a run; `size`: of another global size than the run's."""
        return cls(
            data=data,
            samples=split(len(data.labels), config.data.validation)[0],
            objective=config.objective,
            grid=config.grid,
            seed=config.seed,
            size=size or config.train.batch_size,
            null_label=config.model.n_classes,
            label_dropout=config.train.label_dropout,
            features=features_of(config, data),
        )

    def make(self, step: int, plan: RoutePlan, rows: slice) -> Batch:
        """The rows `rows` of the global batch of `step`, with routes drawn from `plan`; on CPU."""
        rng = generator(self.seed, step, "step")
        samples = np.arange(len(self.data.labels)) if self.samples is None else self.samples
        index = samples[batch_index(len(samples), self.size, self.seed, step)]
        mine = tuple(t[rows] for t in self.data.sample_augmentation(self.size, rng))
        dropped = torch.rand(self.size, generator=rng) < self.label_dropout
        labels = torch.from_numpy(self.data.labels[index])
        # Without classes every label is the null label.
        labels = labels.masked_fill(dropped | (self.null_label == 0), self.null_label)
        t = self.objective.sample_t(self.size, rng)
        noise = torch.randn(self.size, *self.data.shape, generator=rng)
        draw = plan.draw(self.size, self.grid, rng)
        x = self.data.read(index[rows], mine)
        cached = None
        if self.features is not None:
            cached = self.features.read(index[rows], mine[0])  # which are mirrored
        return Batch(x, labels[rows], t[rows], noise[rows], cut(draw, rows), cached)


def cut(draw: Draw, rows: slice) -> Draw:
    """The draw of these samples."""
    return tuple((route, replace(subset, index=subset.index[rows])) for route, subset in draw)


def ahead(
    make: Callable[[int], Batch], steps: range, device: torch.device
) -> Iterator[tuple[int, Batch]]:
    """The steps' batches; where a device computes, the next one is made meanwhile."""
    if device.type == "cpu":
        yield from ((step, make(step)) for step in steps)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = [thread.submit(make, step) for step in steps[:1]]
        for step in steps:
            batch = waiting.pop().result()
            if step + 1 in steps:
                waiting.append(thread.submit(make, step + 1))
            yield step, batch
