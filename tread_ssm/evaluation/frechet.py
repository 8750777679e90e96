"""The Frechet distance between two sets of features, each taken as a Gaussian.

Shape legend: B batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMoments:
    """Count, mean and scatter of features: all that the distance needs of a set of images.

    A set is the sum of its batches: `FeatureMoments.of(a) + FeatureMoments.of(b)`, and so are the
    parts of several processes. Deviations are taken from each part's own mean before they are
    merged (Chan, Golub and LeVeque, 1983), so a mean that is large beside the spread costs no
    digits.

    Attributes:
        count: Images of the set.
        mean: (F,) float64.
        scatter: (F, F) float64, sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features_BF: Tensor) -> FeatureMoments:
        """The moments of a batch of at least one row, in float64 on the CPU.

        Raises:
            ValueError: Features are not finite, or not (B, F) with B >= 1.
        """
        if features_BF.ndim != 2 or len(features_BF) == 0:
            raise ValueError(
                f"FeatureMoments.of: features have shape {tuple(features_BF.shape)}; expected "
                f"(B, F) with at least one row."
            )
        x = features_BF.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(dim=1).sum())
            raise ValueError(
                f"FeatureMoments.of: the features of {bad} of {len(x)} images are not finite: look "
                f"for NaN in the images."
            )
        mean = x.mean(dim=0)
        deviation = x - mean
        return FeatureMoments(len(x), mean, deviation.T @ deviation)

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of both sets together.

        Raises:
            ValueError: The sets have different numbers of features.
        """
        _check_same(self, other)
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = torch.outer(step, step) * (self.count * other.count / count)
        return FeatureMoments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(F, F) float64, unbiased (divided by count - 1), as numpy.cov. Needs two images."""
        if self.count < 2:
            raise ValueError("FeatureMoments.covariance: one image has no covariance; add more.")
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Gaussian:
    """Moments of a set of images whose size is not known, as published reference files hold them.

    Attributes:
        mean: (F,) float64.
        covariance: (F, F) float64.
    """

    mean: Tensor
    covariance: Tensor


def frechet_distance(a: FeatureMoments | Gaussian, b: FeatureMoments | Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0 (Heusel et al., 2017, eq. 6).

    The trace of (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2): two
    symmetric eigenproblems and no root of an asymmetric matrix, which may turn out complex.

    Args:
        a, b: Moments of the features of two sets, in any order.

    Raises:
        ValueError: The dimensions differ, or a set has fewer images than the F + 1 that its
            covariance needs to be of full rank.
    """
    _check_same(a, b)
    for name, moments in (("first", a), ("second", b)):
        if isinstance(moments, Gaussian):
            continue
        least = len(moments.mean) + 1
        if moments.count < least:
            raise ValueError(
                f"frechet_distance: the {name} set has {moments.count} images, but the covariance "
                f"of {least - 1} features needs at least {least}; sample {least - moments.count} "
                f"more, or use an extractor with fewer features."
            )
    shift = a.mean - b.mean
    covariance_a, covariance_b = a.covariance, b.covariance
    cross = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    distance = shift @ shift + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, float(distance))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix whose negative eigenvalues are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _check_same(a: FeatureMoments | Gaussian, b: FeatureMoments | Gaussian) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"Moments of {len(a.mean)} and of {len(b.mean)} features cannot be combined; use one "
            f"extractor for both sets."
        )
