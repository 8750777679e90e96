"""The loss of a routed step: a pure function of the objective's terms and the draw.

Shape legend: B batch, C channels, H rows, W columns, P side of a patch, N tokens, R routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from tread_ssm.diffusion.objective import LossTerms
from tread_ssm.routing.plan import Draw
from tread_ssm.tokens import TokenSubset


@dataclass(frozen=True, kw_only=True)
class AllTokens:
    """TREAD v2 (arXiv 2501.04765): the mean over all elements, whatever was routed.

    Attributes:
        kind: Always "all".
    """

    kind: Literal["all"] = "all"


@dataclass(frozen=True, kw_only=True)
class PerRoute:
    """TREAD v1: mean_r(DSM_r) + reconstruction_weight * mean_r(MAE_r) over the routes r.

    DSM_r is the objective's loss averaged over the patches that route r kept. MAE_r is the squared
    error of the reconstruction against the noisy input on the patches that r dropped, each patch of
    the input normalised by the mean and variance (n - 1) of its P * P * C values.

    Attributes:
        kind: Always "per_route".
        reconstruction_weight: Weight of the reconstruction; 0.1 is MaskDiT's.
    """

    kind: Literal["per_route"] = "per_route"
    reconstruction_weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.reconstruction_weight < float("inf"):
            raise ValueError(
                f"PerRoute: reconstruction_weight is {self.reconstruction_weight}; it must be "
                f"finite and at least 0."
            )


@dataclass(frozen=True)
class RouteLosses:
    """What `route_loss` returns; at least float32. Only `total` carries a gradient.

    Attributes:
        total: (), what to minimise.
        kept: (), the objective's loss on kept patches, averaged over the routes. Where nothing is
            dropped: the plain mean. Where the path of each route is dropped: nan.
        routed: (), the same on dropped patches. Where nothing is dropped: nan, and also where
            the path of each route is dropped.
        kept_per_route: (R,), `kept` of each route that drops something, in the draw's order.
        routed_per_route: (R,), `routed` of the same routes.
    """

    total: Tensor
    kept: Tensor
    routed: Tensor
    kept_per_route: Tensor
    routed_per_route: Tensor


def route_loss(terms: LossTerms, draw: Draw, patch: int, loss: AllTokens | PerRoute) -> RouteLosses:
    """The loss of one step under a draw of routes.

    A route that drops nothing counts as absent, here as in `RoutePlan.draw`; without routes both
    losses are the plain mean. So does one whose path is dropped, which keeps nothing: the blocks
    outside it worked on all tokens alike.

    Args:
        terms: Of the batch that the draw was made for, on the draw's device.
        draw: The draw that the model ran with.
        patch: P; a token is a patch of P x P pixels.
        loss: How the loss accounts for the routes.

    Raises:
        ValueError: The draw does not fit the terms, or `loss` is neither of the two.
    """
    if not isinstance(loss, (AllTokens, PerRoute)):
        raise ValueError(f"route_loss: loss is {loss!r}; pass AllTokens() or PerRoute().")
    token_loss = patchify(terms.loss_map, patch).mean(dim=2)  # (B, N)
    dropping = [subset for _, subset in draw if not subset.is_all]
    _check(dropping, token_loss)
    subsets = [subset for subset in dropping if not subset.is_none]
    mean = token_loss.mean()
    if not subsets:
        none = token_loss.new_empty(0)
        nan = torch.full_like(mean.detach(), torch.nan)
        return RouteLosses(mean, nan if dropping else mean.detach(), nan, none, none)
    dropped = [~subset.mask() for subset in subsets]
    kept = torch.stack([subset.take(token_loss).mean() for subset in subsets])
    routed = torch.stack([_mean_where(token_loss.detach(), d) for d in dropped])
    total = mean
    if isinstance(loss, PerRoute):
        total = kept.mean()
        if loss.reconstruction_weight > 0:
            error = _reconstruction_error(terms, patch)
            apart = torch.stack([_mean_where(error, d) for d in dropped])
            total = total + loss.reconstruction_weight * apart.mean()
    kept = kept.detach()
    return RouteLosses(total, kept.mean(), routed.mean(), kept, routed)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Patches in raster order.

    Args:
        x: (B, C, H, W).
        patch: P, side of a patch.

    Returns:
        (B, N, P * P * C), N = H * W / P^2.

    Raises:
        ValueError: `patch` does not divide H and W.
    """
    height, width = x.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(
            f"patchify: {height} x {width} cannot be cut into patches of {patch} x {patch}; use a "
            f"patch that divides both sides."
        )
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def _reconstruction_error(terms: LossTerms, patch: int) -> Tensor:
    """(B, N), squared error of the reconstruction against the normalised noisy patches."""
    target = patchify(terms.noisy.detach(), patch)
    # The published n - 1; a patch of a single value has the variance 0.
    correction = min(1, target.shape[2] - 1)
    variance, mean = torch.var_mean(target, dim=2, correction=correction, keepdim=True)
    target = (target - mean) / (variance + 1e-6).sqrt()
    return ((patchify(terms.reconstruction, patch) - target) ** 2).mean(dim=2)


def _mean_where(value: Tensor, mask: Tensor) -> Tensor:
    # Not value[mask]: the number of its entries would have to be waited for on a GPU.
    return value.masked_fill(~mask, 0).sum() / mask.sum()


def _check(subsets: list[TokenSubset], token_loss: Tensor) -> None:
    for subset in subsets:
        batch, n = subset.index.shape[0], subset.length
        if (batch, n) != tuple(token_loss.shape):
            raise ValueError(
                f"route_loss: the draw is of {batch} samples with {n} tokens, the loss of "
                f"{token_loss.shape[0]} samples with {token_loss.shape[1]} patches; pass the draw "
                f"that the model ran with, and the model's patch size."
            )
