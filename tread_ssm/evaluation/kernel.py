"""The kernel distance between sets of features: KID (Binkowski et al., 2018).

Shape legend: n, m images, S images of a subset, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_distance(
    samples_nF: Tensor,
    reference_mF: Tensor,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Squared maximum mean discrepancy under the kernel (x . y / F + 1)^3, unbiased.

    The mean over random subsets of `size` images of each set (all of a smaller set), as in
    torch-fidelity and torchmetrics. Its expectation does not depend on the number of images, and
    it may come out a little below 0.

    Args:
        samples_nF: (n, F) features of samples.
        reference_mF: (m, F) features of real images.
        subsets: How many are compared.
        size: Images of a subset, at most.
        seed: Of the choice of subsets.
        device: Where kernels are computed.

    Raises:
        ValueError: A set has fewer than two images, or the features differ in number.
    """
    if samples_nF.shape[1] != reference_mF.shape[1]:
        raise ValueError(
            f"kernel_distance: {samples_nF.shape[1]} and {reference_mF.shape[1]} features cannot "
            f"be compared; use one extractor for both sets."
        )
    n, m = len(samples_nF), len(reference_mF)
    if min(n, m) < 2:
        raise ValueError(f"kernel_distance: {n} samples, {m} reference images; needs two of each.")
    size = min(size, n, m)
    rng = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        x = samples_nF[torch.randperm(n, generator=rng)[:size]].to(device)
        y = reference_mF[torch.randperm(m, generator=rng)[:size]].to(device)
        distances.append(_squared_discrepancy(x, y))
    return sum(distances) / len(distances)


def _squared_discrepancy(x_SF: Tensor, y_SF: Tensor) -> float:
    """Without the diagonals of K(x, x) and K(y, y), which would bias it."""
    s = len(x_SF)
    within = sum(_sum(k) - _sum(k.diagonal()) for k in (_kernel(x_SF, x_SF), _kernel(y_SF, y_SF)))
    return within / (s * (s - 1)) - 2 * _sum(_kernel(x_SF, y_SF)) / s**2


def _kernel(x_SF: Tensor, y_SF: Tensor) -> Tensor:
    return (x_SF @ y_SF.T / x_SF.shape[1] + 1) ** 3


def _sum(x: Tensor) -> float:
    # Sums of a million terms, whose difference is looked for. (MPS has no float64.)
    return float(x.to("cpu", torch.float64).sum())
