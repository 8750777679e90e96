"""Guidance by routes for a model with attached routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tread_ssm.routing.attach.hooks import Attached
from tread_ssm.routing.plan import RoutePlan


def guided_by_routes(
    denoise: Callable[..., Tensor],
    routing: Attached,
    plan: RoutePlan,
    grid: tuple[int, int],
    scale: float,
    *,
    weak_drop: float,
    strong_drop: float = 0.0,
    shared: bool = False,
    generator: torch.Generator | None = None,
) -> Callable[..., Tensor]:
    """A denoiser guided by two passes of itself that drop differently, both conditioned alike.

    weak + scale * (strong - weak) (Sparse Guidance, arXiv 2601.01608); scale 1 is the strong pass.

    denoise:   called as denoise(x, ...) with x (B, ...) and any further arguments; it runs the
               model whose blocks `routing` is attached to, and returns a tensor.
    plan:      the routes of the training; their drop is replaced.
    grid:      (rows, columns) of the image tokens.
    weak_drop, strong_drop: share of the tokens that each pass drops, strong < weak < 1.
    shared:    one draw for all samples, for blocks that take one table for the batch (Flux).
    generator: CPU generator of the draws; each call draws anew.

    Raises ValueError.
    """
    if not 0 <= strong_drop < weak_drop < 1:
        raise ValueError(
            f"guided_by_routes: strong_drop is {strong_drop} and weak_drop {weak_drop}; they must "
            f"satisfy 0 <= strong_drop < weak_drop < 1."
        )
    if not plan.routes:
        raise ValueError("guided_by_routes: the plan holds no route, so both passes are the same.")

    def run(drop: float, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        batch = 1 if shared else x.shape[0]
        draw = plan.with_drop(drop).draw(batch, grid, generator, device=x.device)
        with routing.using(draw):
            return denoise(x, *args, **kwargs)

    def guided(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        strong = run(strong_drop, x, args, kwargs)
        if scale == 1:
            return strong
        weak = run(weak_drop, x, args, kwargs)
        return weak + scale * (strong - weak)

    return guided
