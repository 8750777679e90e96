"""Guidance: functions that wrap denoisers and return a denoiser, all by one formula:

    x0 = weak + scale * (strong - weak)

They differ in what the weak pass is: without the class, with fewer tokens, without a route's
blocks, or another network. A scale of 1 is the strong pass alone, and costs nothing.

Shape legend: B batch, C channels, H rows, W columns, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tread_ssm.diffusion.objective import Denoiser
from tread_ssm.routing.guidance import check_drops, check_scale, extrapolate
from tread_ssm.routing.plan import Draw, RoutePlan
from tread_ssm.tokens import Grid


@dataclass(frozen=True)
class Extrapolation:
    """How far, when and where the estimate moves away from the weak pass.

    Attributes:
        scale: 1 is no guidance.
        interval: (low, high), guidance only in steps that begin at low < t <= high (Kynkäänniemi et
            al., arXiv 2404.07724), in the objective's own timesteps: sigma for EDM; t for flow,
            where t = sigma / (1 + sigma); steps of the chain for noise prediction. None:
            everywhere.
        channels: Only the first so many channels are guided; DiT's published figures guide 3 of 4
            (Peebles and Xie, arXiv 2212.09748). None: all.

    Raises:
        ValueError: `scale` is not finite, `interval` is empty, or there is no channel.
    """

    scale: float
    interval: tuple[float, float] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_scale("guidance", self.scale)
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                f"guidance: interval is {self.interval}; it must be (low, high) in timesteps with "
                f"0 <= low < high."
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance: channels is {self.channels}; use at least 1, or None.")

    def acts(self, t: float, step_t: float | None) -> bool:
        """Whether a call at t, of a step that began at `step_t`, is guided."""
        low, high = (-math.inf, math.inf) if self.interval is None else self.interval
        return low < (t if step_t is None else step_t) <= high

    def __call__(self, weak: Tensor, strong: Tensor) -> Tensor:
        """The guided estimate x_BCHW. Raises ValueError where there are fewer channels."""
        n = strong.shape[1] if self.channels is None else self.channels
        if n > strong.shape[1]:
            raise ValueError(f"guidance: channels is {n}, but there are {strong.shape[1]}.")
        if n == strong.shape[1]:
            return extrapolate(weak, strong, self.scale)
        guided = extrapolate(weak[:, :n], strong[:, :n], self.scale)
        return torch.cat([guided, strong[:, n:]], dim=1)


def guide(strong: Denoiser, weak: Denoiser, rule: Extrapolation) -> Denoiser:
    """Guidance by any weak denoiser; by that of a worse network it is autoguidance (Karras et al.,
    arXiv 2406.02507).

    Args:
        strong: What is guided; it runs first.
        weak: What it is led away from, called with the same arguments.
        rule: How far, when and where.
    """
    if rule.scale == 1:
        return strong

    def guided(
        x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
    ) -> Tensor:
        good = strong(x, t, labels, routing, step_t=step_t)
        if not rule.acts(t, step_t):
            return good
        return rule(weak(x, t, labels, routing, step_t=step_t), good)

    return guided


def classifier_free(
    denoiser: Denoiser,
    scale: float,
    null_label: int,
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
    *,
    apart: bool = False,
) -> Denoiser:
    """The weak pass has no class (Ho & Salimans, arXiv 2207.12598).

    Both passes run as one batch of 2 B, unless they shall be apart.

    Args:
        denoiser: What is guided.
        scale: As in `Extrapolation`.
        null_label: The label of the dropped class.
        interval: As in `Extrapolation`.
        channels: As in `Extrapolation`.
        apart: Run one pass after the other, in half of the memory.

    Raises:
        ValueError: As `Extrapolation`.
    """
    rule = Extrapolation(scale, interval, channels)
    if scale == 1:
        return denoiser
    if apart:
        return guide(denoiser, _without_class(denoiser, null_label), rule)

    def guided(
        x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
    ) -> Tensor:
        if not rule.acts(t, step_t):
            return denoiser(x, t, labels, routing, step_t=step_t)
        twice = torch.cat([labels, torch.full_like(labels, null_label)])
        both = denoiser(torch.cat([x, x]), t, twice, _twice(routing), step_t=step_t)
        with_label, without = both.chunk(2)
        return rule(without, with_label)

    return guided


def _without_class(denoiser: Denoiser, null_label: int) -> Denoiser:
    def run(
        x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
    ) -> Tensor:
        return denoiser(x, t, torch.full_like(labels, null_label), routing, step_t=step_t)

    return run


def path_guidance(
    denoiser: Denoiser, plan: RoutePlan, grid: Grid, rule: Extrapolation, null_label: int = 0
) -> Denoiser:
    """The weak pass skips the blocks of all routes, and has no class (Path-Drop Guidance of SPRINT,
    arXiv 2510.21986). It costs a fraction of a pass.

    Args:
        denoiser: What is guided, of a network that was trained with path drop.
        plan: The routes.
        grid: Of the image tokens.
        rule: How far, when and where.
        null_label: The label of the dropped class; 0: the network has no classes.

    Raises:
        ValueError: The plan holds no route. Also where the result is called with a routing.
    """
    if not plan.routes:
        raise ValueError("path_guidance: the plan holds no route, so there is nothing to skip.")

    def weak(
        x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
    ) -> Tensor:
        _check_undrawn("path_guidance", routing)
        null = torch.full_like(labels, null_label)
        skipping = plan.skipping(x.shape[0], grid, device=x.device)
        return denoiser(x, t, null, skipping, step_t=step_t)

    return guide(denoiser, weak, rule)


def route_guidance(
    denoiser: Denoiser,
    plan: RoutePlan,
    scale: float,
    weak_drop: float,
    strong_drop: float,
    draw: Callable[[RoutePlan, float], Draw],
    *,
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
) -> Denoiser:
    """The weak pass drops more tokens, and both have the label (Sparse Guidance, arXiv 2601.01608).

    To guide by the label as well, wrap the other way round: the result of `classifier_free` in
    this one.

    Args:
        denoiser: What is guided.
        plan: The routes; each drops `weak_drop` or `strong_drop` of the tokens.
        scale: As in `Extrapolation`.
        weak_drop: Share of the tokens that the weak pass drops, strong_drop <= weak_drop < 1.
        strong_drop: Share that the strong pass drops, at least 0; 0 is no routing at all.
        draw: draw(plan, t) says which tokens of each sample of the batch a plan keeps, in the
            order of the batch. It should give the same for the same arguments, so that equal
            drops keep equal tokens, and draw each sample by itself, so that it does not matter
            what else is in the batch.
        interval: As in `Extrapolation`.
        channels: As in `Extrapolation`.

    Raises:
        ValueError: Scale or drops are impossible. Also where the result is called with a routing
            of its own, or with more samples than were drawn for.
    """
    rule = Extrapolation(scale, interval, channels)
    check_drops("route_guidance", weak_drop, strong_drop, equal=True)

    def dropping(drop: float) -> Denoiser:
        def run(
            x: Tensor, t: float, labels: Tensor, routing: Draw = (), *, step_t: float | None = None
        ) -> Tensor:
            _check_undrawn("route_guidance", routing)
            drawn = draw(plan.with_drop(drop), t)
            for _, subset in drawn:
                _check_drawn(subset.index.shape[0], x.shape[0])
            on_device = tuple((route, subset.to(x.device)) for route, subset in drawn)
            return denoiser(x, t, labels, on_device, step_t=step_t)

        return run

    return guide(dropping(strong_drop), dropping(weak_drop), rule)


def _check_undrawn(where: str, routing: Draw) -> None:
    if routing:
        raise ValueError(f"{where}: it draws the routing itself; call the denoiser without one.")


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
