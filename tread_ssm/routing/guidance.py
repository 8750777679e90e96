"""Guidance by routes: two passes of one network that drop different shares of the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from tread_ssm.routing.plan import RoutePlan


def extrapolate(weak: Tensor, strong: Tensor, scale: float) -> Tensor:
    """weak + scale * (strong - weak); any shapes that broadcast. Scale 1 is `strong`."""
    return weak + scale * (strong - weak)


def strong_and_weak(
    run: Callable[[RoutePlan], Tensor],
    plan: RoutePlan,
    scale: float,
    weak_drop: float,
    strong_drop: float,
) -> Tensor:
    """Extrapolate from a pass that drops more to one that drops less (arXiv 2601.01608).

    Args:
        run: Runs the network with the routes of the plan that it gets.
        plan: The routes; their drop is replaced.
        scale: 1 runs the strong pass alone.
        weak_drop: Share of the tokens that the weak pass drops.
        strong_drop: Share of the tokens that the strong pass drops; it runs first.
    """
    strong = run(plan.with_drop(strong_drop))
    if scale == 1:
        return strong
    return extrapolate(run(plan.with_drop(weak_drop)), strong, scale)


def check_drops(where: str, weak_drop: float, strong_drop: float, *, equal: bool) -> None:
    """Raise ValueError unless 0 <= strong_drop < weak_drop < 1, or <= where `equal` is allowed."""
    fits = strong_drop <= weak_drop if equal else strong_drop < weak_drop
    if not (strong_drop >= 0 and fits and weak_drop < 1):
        raise ValueError(
            f"{where}: weak_drop is {weak_drop} and strong_drop {strong_drop}; they must "
            f"satisfy 0 <= strong_drop {'<=' if equal else '<'} weak_drop < 1."
        )


def check_scale(where: str, scale: float) -> None:
    """Raise ValueError unless `scale` is finite."""
    if not math.isfinite(scale):
        raise ValueError(f"{where}: scale is {scale}; it must be finite (1 is no guidance).")
