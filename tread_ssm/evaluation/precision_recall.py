"""Precision and recall of samples by nearest neighbours (Kynkaanniemi et al., 2019).

Shape legend: n samples, m reference images, F features, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 4096


def precision_recall(
    samples_nF: Tensor,
    reference_mF: Tensor,
    *,
    k: int = 3,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
) -> tuple[float, float]:
    """The share of samples near the reference, and of the reference near the samples.

    A set's manifold is the union of balls about its points that reach to their k-th neighbour
    (not counting themselves), as in ADM's evaluation. Distances are float32 and taken block by
    block; the whole matrix (8 GB for 50,000 x 40,000) is never in memory.

    Args:
        samples_nF: (n, F) features of samples.
        reference_mF: (m, F) features of real images.
        k: Number of the neighbour that a ball reaches to.
        device: Where distances are computed.
        block: Points whose distances are taken at a time.

    Returns:
        Precision and recall, each in 0..1.

    Raises:
        ValueError: A set has k or fewer images, or the features differ in number.
    """
    if samples_nF.shape[1] != reference_mF.shape[1]:
        raise ValueError(
            f"precision_recall: {samples_nF.shape[1]} and {reference_mF.shape[1]} features cannot "
            f"be compared; use one extractor for both sets."
        )
    for name, x in (("samples", samples_nF), ("reference", reference_mF)):
        if len(x) <= k:
            raise ValueError(
                f"precision_recall: {name} are {len(x)} images; the distance to neighbour number "
                f"{k} needs at least {k + 1}."
            )
    # Distances by matrix products lose digits where points are far from the origin.
    centre = reference_mF.float().mean(dim=0)
    x, y = ((z.float() - centre).to(device) for z in (samples_nF, reference_mF))
    reach_x, reach_y = radii(x, k, block), radii(y, k, block)
    precise = torch.zeros(len(x), dtype=torch.bool, device=device)
    recalled = torch.zeros(len(y), dtype=torch.bool, device=device)
    for i in _blocks(len(x), block):
        for j in _blocks(len(y), block):
            distance = _distances(x[i], y[j])
            precise[i] |= (distance <= reach_y[j]).any(dim=1)
            recalled[j] |= (distance <= reach_x[i, None]).any(dim=0)
    return float(precise.float().mean()), float(recalled.float().mean())


def radii(x_nF: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """(n,) the distance from each point to its k-th nearest other point."""
    found = []
    for i in _blocks(len(x_nF), block):
        nearest = x_nF.new_full((min(i.stop, len(x_nF)) - i.start, k), torch.inf)
        for j in _blocks(len(x_nF), block):
            distance = _distances(x_nF[i], x_nF[j])
            if i == j:
                distance.fill_diagonal_(torch.inf)
            nearest = torch.cat([nearest, distance], dim=1).topk(k, largest=False).values
        found.append(nearest[:, -1])
    return torch.cat(found)


def _distances(a_bF: Tensor, b_bF: Tensor) -> Tensor:
    return torch.cdist(a_bF, b_bF, compute_mode="use_mm_for_euclid_dist")


def _blocks(n: int, block: int) -> Iterator[slice]:
    return (slice(i, i + block) for i in range(0, n, block))
