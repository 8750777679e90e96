"""Drawing samples from a network, as the grids of a run, its report and scripts/sample.py do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tread_ssm.diffusion import Network, Objective, classifier_free, route_guidance, sample
from tread_ssm.diffusion.sampler import OnStep, Sampler
from tread_ssm.models import ModelConfig
from tread_ssm.routing import RoutePlan
from tread_ssm.training.randomness import generator


@dataclass(frozen=True)
class RouteGuidance:
    """Guide by two passes that drop differently, see `tread_ssm.diffusion.route_guidance`."""

    plan: RoutePlan
    grid: tuple[int, int]
    weak_drop: float
    strong_drop: float
    seed: int

    def __post_init__(self) -> None:
        if not self.plan.routes:
            raise ValueError("Route guidance needs a network that was trained with routes.")


def starting_noise(n: int, model: ModelConfig, seed: int) -> Tensor:
    """(n, C, H, W) float32 on the CPU; image i is the same for every n."""
    shape = (model.channels, model.image_size, model.image_size)
    rows = [torch.randn(shape, generator=generator(seed, i, "sample")) for i in range(n)]
    return torch.stack(rows)


@torch.no_grad()
def draw(
    network: Network,
    objective: Objective,
    noise: Tensor,
    labels: Tensor,
    *,
    null_label: int,
    steps: int,
    guidance: float,
    interval: tuple[float, float] | None = None,
    routes: RouteGuidance | None = None,
    sampler: Sampler | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Samples (B, C, H, W) float32 for noise (B, C, H, W) and labels (B,) on one device.

    null_label: the network's label for "no class"; 0: it has no classes, and is guided by routes
                alone.
    guidance:   1 is none.
    interval:   levels at which to guide, see `classifier_free`; not with `routes`.
    routes:     the two passes of route guidance, in place of classifier-free guidance.
    sampler:    None: heun for EDM and flow, dpm_solver_pp for noise prediction.

    Raises ValueError.
    """
    denoiser = objective.denoiser(network)
    if routes is not None:
        if interval is not None:
            raise ValueError("An interval belongs to classifier-free guidance, not to routes.")
        denoiser = route_guidance(
            denoiser,
            routes.plan,
            guidance,
            routes.weak_drop,
            routes.strong_drop,
            routes.grid,
            routes.seed,
        )
    elif null_label > 0:
        denoiser = classifier_free(denoiser, guidance, null_label, interval)
    levels = objective.times(steps)
    return sample(denoiser, objective, noise, levels, labels, sampler=sampler, on_step=on_step)
