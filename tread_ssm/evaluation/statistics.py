"""What is kept of a set of images in order to compare it with another.

Shape legend: n images, B batch, F pooled features, G spatial features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from tread_ssm.evaluation.extractors import FeatureExtractor
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian
from tread_ssm.evaluation.metrics import METRICS, check_metrics
from tread_ssm.processes import gathered

# Rows of features that are turned into moments at a time.
_CHUNK = 1024


@dataclass(frozen=True)
class Statistics:
    """A set of images as far as the metrics asked for need it; what they don't need is None.

    Parts of a set add up to the whole, in their order.

    Attributes:
        extractor: Name of the feature extractor.
        count: n.
        pooled: Moments of the (n, F) pooled features, float64.
        spatial: Moments of the (n, G) spatial features, float64.
        features: (n, F), the pooled features themselves, float32, on the CPU.
        probabilities: (n, classes) float32, on the CPU.
        size: Rows and columns of the images. None: not known, or they differ.
    """

    extractor: str
    count: int
    pooled: FeatureMoments | Gaussian | None = None
    spatial: FeatureMoments | Gaussian | None = None
    features: Tensor | None = None
    probabilities: Tensor | None = None
    size: tuple[int, int] | None = None

    def __add__(self, other: Statistics) -> Statistics:
        """Both sets together, this one first.

        Raises:
            ValueError: They are of different features.
        """
        if self.extractor != other.extractor:
            raise ValueError(
                f"Statistics of {self.extractor} and of {other.extractor} features do not add up."
            )
        if not self.count or not other.count:
            return self if self.count else other
        return Statistics(
            self.extractor,
            self.count + other.count,
            _total(self.pooled, other.pooled),
            _total(self.spatial, other.spatial),
            _joined(self.features, other.features),
            _joined(self.probabilities, other.probabilities),
            self.size if self.size == other.size else None,
        )

    def merged(self) -> Statistics:
        """The statistics of all processes together, in their order, on every process.

        All of them call it; those that had no images, too.
        """
        return reduce(operator.add, gathered(self))


def statistics(
    extractor: FeatureExtractor, batches: Iterable[Tensor], metrics: Sequence[str]
) -> Statistics:
    """Stream images through the extractor, this process's alone.

        mine = statistics(extractor, batches, ["fid", "is"])
        print(score(mine.merged(), reference, ["fid", "is"]))

    Args:
        extractor: Gives the features of a batch.
        batches: uint8 (B, 3, H, W) each. None at all give an empty set.
        metrics: What will be computed from the result, names from `METRICS`.

    Raises:
        ValueError: The extractor lacks what a metric needs, or features are not finite.
    """
    check_metrics(metrics)
    needs = {METRICS[metric].needs: metric for metric in reversed(metrics)}
    moments = {name: _Stream() for name in ("pooled", "spatial") if name in needs}
    rows: dict[str, list[Tensor]] = {n: [] for n in ("features", "probabilities") if n in needs}
    count = 0
    sizes: set[tuple[int, int]] = set()
    for images in batches:
        found = extractor(images)
        for name, metric in needs.items():
            x = found.pooled if name == "features" else getattr(found, name)
            if x is None:
                raise ValueError(
                    f"{metric}: the {extractor.name} features {_LACKS[name]}; leave {metric} out."
                )
            if name in moments:
                moments[name].add(x)
            else:
                _check_finite(name, x, count)
                rows[name].append(x.to("cpu", torch.float32))
        count += len(images)
        sizes.add((images.shape[2], images.shape[3]))
    held: dict[str, Any] = {name: stream.total() for name, stream in moments.items()}
    held |= {name: torch.cat(parts) for name, parts in rows.items() if parts}
    size = sizes.pop() if len(sizes) == 1 else None
    return Statistics(extractor.name, count, size=size, **held)


def alike(held: Statistics) -> bool:
    """Whether two or more images all have the same features, to the rounding of float32."""
    if held.count < 2:
        return False
    spreads: list[bool] = []
    for moments in (held.pooled, held.spatial):
        if isinstance(moments, FeatureMoments):
            deviation = moments.covariance.diagonal().max().sqrt()
            spreads.append(bool(deviation <= 1e-5 * moments.mean.abs().max()))
    for rows in (held.features, held.probabilities):
        if rows is not None:
            spreads.append(bool((rows - rows[0]).abs().max() <= 1e-5 * rows.abs().max()))
    return bool(spreads) and all(spreads)


def feature_moments(
    extractor: FeatureExtractor, images_BCHW: Tensor, batch: int = 256
) -> FeatureMoments:
    """The moments of the pooled features of images.

    Args:
        extractor: Gives the features.
        images_BCHW: (n, 3, H, W) uint8.
        batch: Images at a time.
    """
    parts = (FeatureMoments.of(extractor(part).pooled) for part in images_BCHW.split(batch))
    return reduce(operator.add, parts)


class _Stream:
    """FeatureMoments of features that come in small batches; merging has its cost."""

    def __init__(self) -> None:
        self._moments: FeatureMoments | None = None
        self._waiting: list[Tensor] = []

    def add(self, features_BF: Tensor) -> None:
        self._waiting.append(features_BF.cpu())
        if sum(map(len, self._waiting)) >= _CHUNK:
            self._take()

    def total(self) -> FeatureMoments | None:
        if self._waiting:
            self._take()
        return self._moments

    def _take(self) -> None:
        new = FeatureMoments.of(torch.cat(self._waiting))
        self._moments = new if self._moments is None else self._moments + new
        self._waiting = []


_LACKS = {"spatial": "have no spatial part", "probabilities": "come without classes"}


def _check_finite(name: str, x: Tensor, before: int) -> None:
    """Moments refuse such numbers by themselves; distances and scores of them would mislead."""
    if not bool(torch.isfinite(x).all()):
        first = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        raise ValueError(f"The {name} of image {before + first} of this process are not finite.")


def _total(
    a: FeatureMoments | Gaussian | None, b: FeatureMoments | Gaussian | None
) -> FeatureMoments | None:
    if isinstance(a, FeatureMoments) and isinstance(b, FeatureMoments):
        return a + b
    if a is None and b is None:
        return None
    raise ValueError("Statistics do not add up: one part has no moments, or not their count.")


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if (a is None) != (b is None):
        raise ValueError("Statistics do not add up: they were made for different metrics.")
    return None if a is None or b is None else torch.cat([a, b])
