"""The inception score (Salimans et al., 2016). Shape legend: n images, C classes."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probabilities_nC: Tensor, split: int = 5000) -> float:
    """exp of the mean of KL(p(y | x) || p(y)), in 1..C, the mean over splits of so many images.

    As ADM takes it: the splits follow one another in the order of the images, and what is left
    over is a split of its own. Fewer images give a lower score, so compare equal numbers.

    Args:
        probabilities_nC: (n, C) of C classes for each image.
        split: Images of a split.

    Raises:
        ValueError: There is no image.
    """
    if len(probabilities_nC) == 0:
        raise ValueError("inception_score: there are no images.")
    scores = [_score(part.double()) for part in probabilities_nC.split(split)]
    return sum(scores) / len(scores)


def _score(p: Tensor) -> float:
    # xlogy: a probability of 0 adds 0.
    divergence = torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0, keepdim=True))
    return float(divergence.sum(dim=1).mean().exp())
