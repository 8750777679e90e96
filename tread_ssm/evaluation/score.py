"""The metrics of a set of samples, from its statistics and those of real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian, frechet_distance
from tread_ssm.evaluation.inception_score import inception_score
from tread_ssm.evaluation.kernel import kernel_distance
from tread_ssm.evaluation.precision_recall import precision_recall
from tread_ssm.evaluation.statistics import NEEDS, Metric, Statistics, check_metrics

NEIGHBOURS = 3

T = TypeVar("T")
_Set = FeatureMoments | Gaussian | None


def score(
    samples: Statistics,
    reference: Statistics | None,
    metrics: Sequence[Metric],
    device: torch.device | str = "cpu",
) -> dict[Metric, float]:
    """The metrics of the samples, in the order asked for; FID, sFID and KID are best at 0.

    reference: None will do for the inception score alone.
    device:    where neighbours (precision, recall) and kernels (kid) are computed.

    Raises ValueError where statistics were not kept, or images are too few.
    """
    check_comparable(samples.count, samples.extractor, reference, metrics)
    values: dict[Metric, float] = {}
    for metric in metrics:
        if metric == "is":
            values[metric] = inception_score(_need(samples.probabilities, metric))
            continue
        real = _need(reference, metric)
        if metric == "fid":
            values[metric] = _frechet(samples.pooled, real.pooled, metric)
        elif metric == "sfid":
            values[metric] = _frechet(samples.spatial, real.spatial, metric)
        elif metric == "kid":
            values[metric] = kernel_distance(
                _need(samples.features, metric), _need(real.features, metric), device=device
            )
        elif metric not in values:
            values["precision"], values["recall"] = precision_recall(
                _need(samples.features, metric),
                _need(real.features, metric),
                k=NEIGHBOURS,
                device=device,
            )
    return {metric: values[metric] for metric in metrics}


def check_comparable(
    count: int, extractor: str, reference: Statistics | None, metrics: Sequence[Metric]
) -> None:
    """Whether `count` samples can be compared with the reference; ask before drawing them.

    Raises ValueError.
    """
    check_metrics(metrics)
    if count < 1:
        raise ValueError("There are no samples to evaluate.")
    for metric in metrics:
        if metric == "is":
            continue
        if reference is None:
            raise ValueError(f"{metric} compares with real images: a reference is needed.")
        if reference.extractor != extractor:
            raise ValueError(
                f"The samples' features are of {extractor}, the reference's of "
                f"{reference.extractor}; use one extractor for both."
            )
        _check_count("sample set", count, reference, metric)
        held = getattr(reference, NEEDS[metric])
        if isinstance(held, Tensor):
            _check_count("reference", len(held), reference, metric)
        elif isinstance(held, FeatureMoments):
            _check_count("reference", held.count, reference, metric)


def _check_count(name: str, count: int, reference: Statistics, metric: Metric) -> None:
    held = _need(getattr(reference, NEEDS[metric]), metric)
    least, why = 2, ""
    if isinstance(held, (FeatureMoments, Gaussian)):
        least = len(held.mean) + 1
        why = f" for the covariance of {len(held.mean)} features"
    elif metric in ("precision", "recall"):
        least = NEIGHBOURS + 1
    if count < least:
        raise ValueError(
            f"{metric} needs at least {least} images{why}; the {name} has {count}: add "
            f"{least - count}, or leave {metric} out."
        )


def _frechet(a: _Set, b: _Set, metric: Metric) -> float:
    if a is None or b is None:
        raise ValueError(f"{metric}: the statistics were not made for it.")
    return frechet_distance(a, b)


def _need(value: T | None, metric: Metric) -> T:
    if value is None:
        raise ValueError(f"{metric}: the statistics were not made for it.")
    return value
