"""Which samples a step sees: a pure function of the seed and the step.

Resuming costs nothing, an epoch neither loses nor doubles a sample, and any number of processes
sees the same global batches.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from tread_ssm.randomness import generator


def batch_index(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """(batch,) int64, the samples of `step` out of n.

    The permutations of all epochs are laid end to end; each step takes the next stretch.
    """
    first, last = step * batch, (step + 1) * batch
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        start = epoch * n
        parts.append(_permutation(n, seed, epoch)[max(first - start, 0) : last - start])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n, generator=generator(seed, epoch, "order")).numpy()
