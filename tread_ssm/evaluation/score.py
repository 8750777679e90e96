"""The metrics of a set of samples, from its statistics and those of real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tread_ssm.evaluation.extractors import FeatureExtractor
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian
from tread_ssm.evaluation.metrics import METRICS, check_metrics
from tread_ssm.evaluation.statistics import Statistics, statistics


def score(
    samples: Statistics,
    reference: Statistics | None,
    metrics: Sequence[str],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The metrics of the samples, in the order asked for; FID, sFID and KID are best at 0.

    Args:
        samples: Statistics of the generated images.
        reference: Statistics of real images. None will do for the inception score alone.
        metrics: Names from `METRICS`.
        device: Where neighbours (precision, recall) and kernels (kid) are computed.

    Raises:
        ValueError: Statistics were not kept, there are too few images, or sizes differ.
    """
    if reference is not None:
        check_sizes("The images of the reference", reference.size, samples.size)
    check_comparable(samples.count, samples.extractor, reference, metrics)
    values: dict[str, float] = {}
    for name in metrics:
        if name in values:  # computed beside an earlier one
            continue
        metric = METRICS[name]
        real = _held(reference, name) if reference is not None and metric.compared else None
        values |= metric.compute(_held(samples, name), real, device)
    return {name: values[name] for name in metrics}


def check_sizes(what: str, real: tuple[int, int] | None, sampled: tuple[int, int] | None) -> None:
    """Whether real images are as large as those that are compared with them.

    Args:
        what: The real images, as the message calls them.
        real: Their rows and columns. None: not known.
        sampled: Rows and columns of the samples. None: not known.

    Raises:
        ValueError: The two sizes are known, and differ.
    """
    if real is not None and sampled is not None and real != sampled:
        height, width = sampled
        raise ValueError(
            f"{what} are {real[0]} x {real[1]} pixels, those sampled {height} x {width}; compare "
            f"images of one size: make a reference from images of {height} x {width}."
        )


def check_comparable(
    count: int, extractor: str, reference: Statistics | None, metrics: Sequence[str]
) -> None:
    """Whether `count` samples can be compared with the reference; ask before sampling them.

    Args:
        count: Number of samples.
        extractor: Name of their feature extractor.
        reference: Statistics of real images, as for `score`.
        metrics: Names from `METRICS`.

    Raises:
        ValueError: A metric is unknown, lacks a reference, or has too few images.
    """
    check_metrics(metrics)
    if count < 1:
        raise ValueError("There are no samples to evaluate.")
    for name in (m for m in metrics if METRICS[m].compared):
        if reference is None:
            raise ValueError(f"{name} compares with real images: a reference is needed.")
        if reference.extractor != extractor:
            raise ValueError(
                f"The samples' features are of {extractor}, the reference's of "
                f"{reference.extractor}; use one extractor for both."
            )
        held = _held(reference, name)
        _check_count("sample set", count, held, name)
        if isinstance(held, Tensor):
            _check_count("reference", len(held), held, name)
        elif isinstance(held, FeatureMoments):
            _check_count("reference", held.count, held, name)


def check_counts(
    extractor: FeatureExtractor,
    counts: Mapping[str, int],
    metrics: Sequence[str],
    size: tuple[int, int],
) -> None:
    """Whether sets of images are large enough; ask before their features are computed.

    How many features there are is seen from those of one black image.

    Args:
        extractor: Gives the features.
        counts: Images of each set, by what messages call it.
        metrics: Names from `METRICS`.
        size: Rows and columns of an image.

    Raises:
        ValueError: There are too few images, or the extractor lacks what a metric needs.
    """
    black = torch.zeros(1, 3, *size, dtype=torch.uint8)
    probe = statistics(extractor, [black], metrics)
    for name in (m for m in metrics if METRICS[m].compared):
        for who, count in counts.items():
            _check_count(who, count, _held(probe, name), name)


def _check_count(who: str, count: int, held: Tensor | FeatureMoments | Gaussian, name: str) -> None:
    least, why = METRICS[name].least, ""
    if least is None and not isinstance(held, Tensor):
        least = len(held.mean) + 1
        why = f" for the covariance of {len(held.mean)} features"
    if least is not None and count < least:
        raise ValueError(
            f"{name} needs at least {least} images{why}; the {who} has {count}: add "
            f"{least - count}, or leave {name} out."
        )


def _held(statistics: Statistics, name: str) -> Any:
    """The field that a metric is computed from."""
    value = getattr(statistics, METRICS[name].needs)
    if value is None:
        raise ValueError(f"{name}: the statistics were not made for it.")
    return value
