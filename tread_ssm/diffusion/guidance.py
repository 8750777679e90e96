"""Guidance: functions that wrap a denoiser and return a denoiser.

Shape legend: B batch, C channels, H rows, W columns, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tread_ssm.diffusion.objective import Denoiser
from tread_ssm.routing.guidance import check_drops, check_scale, extrapolate, strong_and_weak
from tread_ssm.routing.plan import Draw, RoutePlan


def classifier_free(
    denoiser: Denoiser,
    scale: float,
    null_label: int,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """x0 = x0_null + scale * (x0_label - x0_null) (Ho & Salimans, arXiv 2207.12598).

    Both passes run as one batch of 2 B.

    Args:
        denoiser: What is guided.
        scale: 1 is no guidance, and then costs nothing.
        null_label: The label of the dropped class.
        interval: (low, high), guidance only at low < t <= high (Kynkäänniemi et al., arXiv
            2404.07724), in the objective's own timesteps: sigma for EDM; t for flow, where
            t = sigma / (1 + sigma); steps of the chain for noise prediction. None: everywhere.

    Raises:
        ValueError: `scale` is not finite, or `interval` is empty.
    """
    check_scale("classifier_free", scale)
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"classifier_free: interval is {interval}; it must be (low, high) in timesteps with "
            f"0 <= low < high."
        )
    if scale == 1:
        return denoiser
    low, high = (-math.inf, math.inf) if interval is None else interval

    def guided(x: Tensor, t: float, labels: Tensor, routing: Draw = ()) -> Tensor:
        if not low < t <= high:
            return denoiser(x, t, labels, routing)
        null = torch.full_like(labels, null_label)
        both = denoiser(torch.cat([x, x]), t, torch.cat([labels, null]), _twice(routing))
        with_label, without = both.chunk(2)
        return extrapolate(without, with_label, scale)

    return guided


def route_guidance(
    denoiser: Denoiser,
    plan: RoutePlan,
    scale: float,
    weak_drop: float,
    strong_drop: float,
    draw: Callable[[RoutePlan, float], Draw],
) -> Denoiser:
    """x0 = weak + scale * (strong - weak): two passes of one network that differ in what its routes
    drop, both with the label (Sparse Guidance, arXiv 2601.01608).

    To guide by the label as well, wrap the other way round: the result of `classifier_free` in
    this one.

    Args:
        denoiser: What is guided.
        plan: The routes; each drops `weak_drop` or `strong_drop` of the tokens.
        scale: 1 is the strong pass alone, and then costs one call.
        weak_drop: Share of the tokens that the weak pass drops, strong_drop <= weak_drop < 1.
        strong_drop: Share that the strong pass drops, at least 0; 0 is no routing at all.
        draw: draw(plan, t) says which tokens of each sample of the batch a plan keeps, in the
            order of the batch. It should give the same for the same arguments, so that equal
            drops keep equal tokens, and draw each sample by itself, so that it does not matter
            what else is in the batch.

    Raises:
        ValueError: Scale or drops are impossible. Also where the result is called with a routing
            of its own, or with more samples than were drawn for.
    """
    check_scale("route_guidance", scale)
    check_drops("route_guidance", weak_drop, strong_drop, equal=True)

    def guided(x: Tensor, t: float, labels: Tensor, routing: Draw = ()) -> Tensor:
        if routing:
            raise ValueError(
                "route_guidance: it draws the routing itself; call the denoiser without one."
            )

        def run(p: RoutePlan) -> Tensor:
            drawn = draw(p, t)
            for _, subset in drawn:
                _check_drawn(subset.index.shape[0], x.shape[0])
            on_device = tuple((route, subset.to(x.device)) for route, subset in drawn)
            return denoiser(x, t, labels, on_device)

        return strong_and_weak(run, plan, scale, weak_drop, strong_drop)

    return guided


def _check_drawn(drawn: int, batch: int) -> None:
    # The two halves of a batch that classifier_free doubles must not keep different tokens.
    if drawn != batch:
        raise ValueError(
            f"route_guidance: the draw is for {drawn} samples, the batch has {batch}; to combine "
            f"it with classifier_free, write route_guidance(classifier_free(...), ...)."
        )


def _twice(draw: Draw) -> Draw:
    """The draw for the batch that stands twice, one copy behind the other."""
    return tuple(
        (route, replace(subset, index=torch.cat([subset.index, subset.index])))
        for route, subset in draw
    )
