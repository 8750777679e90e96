"""Guidance by routes for a model with attached routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tread_ssm.routing.attach.hooks import Attached
from tread_ssm.routing.guidance import check_drops, check_scale, strong_and_weak
from tread_ssm.routing.plan import RoutePlan
from tread_ssm.tokens import Grid


def guided_by_routes(
    denoise: Callable[..., Tensor],
    routing: Attached,
    plan: RoutePlan,
    grid: Grid,
    scale: float,
    *,
    weak_drop: float,
    strong_drop: float = 0.0,
    shared: bool = False,
    generator: torch.Generator | None = None,
) -> Callable[..., Tensor]:
    """A denoiser guided by two passes of itself that drop differently, both conditioned alike.

    Sparse Guidance, arXiv 2601.01608; each call draws anew.

    Args:
        denoise: Called as denoise(x, ...) with x (B, ...) and any further arguments; it runs the
            model whose blocks `routing` is attached to, and returns a tensor.
        routing: What `attach` returned for that model.
        plan: The routes of the training; their drop is replaced.
        grid: (rows, columns) of the image tokens, or (frames, rows, columns).
        scale: weak + scale * (strong - weak); 1 is the strong pass alone.
        weak_drop: Share of the tokens that the weak pass drops, strong_drop < weak_drop < 1.
        strong_drop: Share that the strong pass drops, at least 0.
        shared: One draw for all samples, for blocks that take one table for the batch (Flux).
        generator: CPU generator of the draws.

    Raises:
        ValueError: Scale or drops are impossible, or the plan holds no route.
    """
    check_scale("guided_by_routes", scale)
    check_drops("guided_by_routes", weak_drop, strong_drop, equal=False)
    if not plan.routes:
        raise ValueError("guided_by_routes: the plan holds no route, so both passes are the same.")

    def guided(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def run(routes: RoutePlan) -> Tensor:
            batch = 1 if shared else x.shape[0]
            with routing.using(routes.draw(batch, grid, generator, device=x.device)):
                return denoise(x, *args, **kwargs)

        return strong_and_weak(run, plan, scale, weak_drop, strong_drop)

    return guided
