"""What is kept of a set of images in order to compare it with another.

Shape legend: n images, B batch, F pooled features, G spatial features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from tread_ssm.evaluation.extractors import FeatureExtractor, Features
from tread_ssm.evaluation.frechet import FeatureMoments, Gaussian
from tread_ssm.processes import gathered

Metric = Literal["fid", "sfid", "is", "precision", "recall", "kid"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# Of the fields of Statistics, the one that a metric is computed from.
NEEDS: dict[Metric, str] = {
    "fid": "pooled",
    "sfid": "spatial",
    "is": "probabilities",
    "precision": "features",
    "recall": "features",
    "kid": "features",
}

# Rows of features that are turned into moments at a time.
_CHUNK = 1024


@dataclass(frozen=True)
class Statistics:
    """A set of images as far as the metrics asked for need it; what they don't need is None.

    Parts of a set add up to the whole, in their order.

    extractor:     name of the feature extractor.
    count:         n.
    pooled:        of the (n, F) pooled features, float64.
    spatial:       of the (n, G) spatial features, float64.
    features:      (n, F), the pooled features themselves, float32, on the CPU.
    probabilities: (n, classes) float32, on the CPU.
    """

    extractor: str
    count: int
    pooled: FeatureMoments | Gaussian | None = None
    spatial: FeatureMoments | Gaussian | None = None
    features: Tensor | None = None
    probabilities: Tensor | None = None

    def __add__(self, other: Statistics) -> Statistics:
        """Both sets together, this one first. Raises ValueError."""
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
        )

    def merged(self) -> Statistics:
        """The statistics of all processes together, in their order, on every process.

        All of them call it; those that had no images, too.
        """
        return reduce(operator.add, gathered(self))


def statistics(
    extractor: FeatureExtractor, batches: Iterable[Tensor], metrics: Sequence[Metric]
) -> Statistics:
    """Stream uint8 images (B, 3, H, W) through the extractor; of this process's images alone.

        mine = statistics(extractor, batches, ["fid", "is"])
        print(score(mine.merged(), reference, ["fid", "is"]))

    No batches give an empty set. Raises ValueError where the extractor lacks what a metric needs,
    or features are not finite.
    """
    check_metrics(metrics)
    needs = {NEEDS[m] for m in metrics}
    pooled, spatial = _Stream(), _Stream()
    features: list[Tensor] = []
    probabilities: list[Tensor] = []
    count = 0
    for images in batches:
        found = extractor(images)
        _check_complete(found, extractor.name, metrics)
        _check_finite(found, needs, count)
        count += len(images)
        if "pooled" in needs:
            pooled.add(found.pooled)
        if "spatial" in needs and found.spatial is not None:
            spatial.add(found.spatial)
        if "features" in needs:
            features.append(found.pooled.to("cpu", torch.float32))
        if "probabilities" in needs and found.probabilities is not None:
            probabilities.append(found.probabilities.to("cpu", torch.float32))
    return Statistics(
        extractor.name,
        count,
        pooled.total(),
        spatial.total(),
        torch.cat(features) if features else None,
        torch.cat(probabilities) if probabilities else None,
    )


def feature_moments(
    extractor: FeatureExtractor, images_BCHW: Tensor, batch: int = 256
) -> FeatureMoments:
    """The moments of the pooled features of uint8 images (n, 3, H, W), `batch` at a time."""
    parts = (FeatureMoments.of(extractor(part).pooled) for part in images_BCHW.split(batch))
    return reduce(operator.add, parts)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises ValueError where a metric is unknown, named twice, or none is named."""
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"No metric is called {metric!r}; there are {', '.join(METRICS)}.")
    if not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"metrics are {', '.join(metrics) or 'none'}; name each wanted one once.")


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


def _check_complete(found: Features, extractor: str, metrics: Sequence[Metric]) -> None:
    if "sfid" in metrics and found.spatial is None:
        raise ValueError(f"sfid: the {extractor} features have no spatial part; leave sfid out.")
    if "is" in metrics and found.probabilities is None:
        raise ValueError(f"is: the {extractor} features come without classes; leave is out.")


def _check_finite(found: Features, needs: set[str], before: int) -> None:
    """Moments refuse such numbers by themselves; distances and scores of them would mislead."""
    looked_at = {"features": found.pooled, "probabilities": found.probabilities}
    for name, x in looked_at.items():
        if name not in needs or x is None or bool(torch.isfinite(x).all()):
            continue
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
