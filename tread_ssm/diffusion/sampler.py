"""Samplers: from noise to data along a noise schedule, as functions over a denoiser.

    timesteps = objective.timesteps(40)
    x = heun(objective.denoiser(model), objective, noise, timesteps, labels)

`SAMPLERS` names them all. A sampler is one function with these arguments and one row there:

    denoiser: x_BCHW, t, labels_B -> estimate of the clean data; guidance included. Methods that
        call it twice a step say by step_t= where the step began.
    schedule: The objective that the denoiser was made by.
    noise: (B, C, H, W) standard normal numbers, float32 or float64, which the result's dtype
        follows. The start is x = schedule.start_std(t) * noise at the first t.
    timesteps: (n + 1,) descending; a last t of 0 means clean data.
    labels: (B,) int64.
    on_step: Called as on_step(i, n) when i of n steps are done.
    fresh: For samplers of a stochastic equation: fresh(i) gives step i its own noise, (B, C, H, W)
        standard normal numbers like `noise`.

It returns x (B, C, H, W) at the last t, and raises ValueError where the timesteps cannot be walked.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tread_ssm.diffusion.dpm_solver import half_log_snr, integrated_x0, step_sizes
from tread_ssm.diffusion.objective import Denoiser, NoiseSchedule

OnStep: TypeAlias = Callable[[int, int], None]
Fresh: TypeAlias = Callable[[int], Tensor]
Sampler: TypeAlias = Callable[..., Tensor]


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, one call a step: x_next = alpha_next * x0 + sigma_next * (the noise in x).

    Euler's method for straight paths, DDIM (Song et al., arXiv 2010.02502) for noise prediction.
    """
    steps, alpha, sigma, x = _start(schedule, noise, timesteps)
    n = len(steps) - 1
    for i in range(n):
        x0 = denoiser(x, steps[i], labels)
        shrink = sigma[i + 1] / sigma[i]
        x = shrink * x + (alpha[i + 1] - shrink * alpha[i]) * x0
        if on_step is not None:
            on_step(i + 1, n)
    return x


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order, two calls a step but the last one to t 0 (arXiv 2206.00364, algorithm 1).

    For EDM and flow, on whose paths dx/dt = (x - x0) / t.

    Raises:
        ValueError: The path is another one.
    """
    _check_straight("heun", schedule)
    steps, _, _, x = _start(schedule, noise, timesteps)
    n = len(steps) - 1
    for i in range(n):
        x = _heun_step(denoiser, x, steps[i], steps[i + 1], labels, steps[i])
        if on_step is not None:
            on_step(i + 1, n)
    return x


@torch.no_grad()
def dpm_solver_pp(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    order: Literal[1, 2, 3] = 3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Multistep DPM-Solver++ with data prediction (Lu et al., arXiv 2211.01095), one call a step.

    A start without any data (flow at t = 1) is left by a step of order 1 and not looked back at.

    Args:
        order: Of the method once enough steps are behind it. The last step to t 0 is of order 1,
            and among fewer than 15 steps the one before it of order 2, as in diffusers. 2 is
            steadier than 3 with strong guidance and few steps.
        denoiser, schedule, noise, timesteps, labels, on_step: As for every sampler.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_solver_pp: order is {order}; use 1, 2 or 3.")
    steps, alpha, sigma, x = _start(schedule, noise, timesteps)
    half_log_snrs = [half_log_snr(a, s) for a, s in zip(alpha, sigma, strict=True)]
    n = len(steps) - 1
    known: list[tuple[float, Tensor]] = []  # (half log-SNR, estimate of x0), the latest one last
    for i in range(n):
        x0 = denoiser(x, steps[i], labels)
        known = [*(k for k in known[-2:] if math.isfinite(k[0])), (half_log_snrs[i], x0)]
        ends = sigma[-1] == 0 and (i == n - 1 or n < 15)
        most = min(order, n - i) if ends else order
        estimate = integrated_x0(known[-most:], half_log_snrs[i + 1])
        x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * estimate
        if on_step is not None:
            on_step(i + 1, n)
    return x


@torch.no_grad()
def dpm_solver_singlestep(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Singlestep DPM-Solver++ of order 3 (arXiv 2211.01095), as DiM samples; one call a timestep.

    Timesteps are walked in groups of three, and what is left over in groups of 2 and 1
    (DPM-Solver-fast, arXiv 2206.00927, section 3.4). All estimates of a group lead on from its
    first x; none is used by the next group. DiM stops at t = 1 of its chain; the step from there to
    t 0 is of order 1.
    """
    steps, alpha, sigma, x = _start(schedule, noise, timesteps)
    half_log_snrs = [half_log_snr(a, s) for a, s in zip(alpha, sigma, strict=True)]
    n, begin = len(steps) - 1, 0
    for size in step_sizes(n, starts=math.isinf(half_log_snrs[0]), ends=sigma[-1] == 0):
        at, start, first = half_log_snrs[begin], x, denoiser(x, steps[begin], labels)
        for i in range(begin, begin + size):
            h = half_log_snrs[i + 1] - at
            estimate = -math.expm1(-h) * first
            if i > begin:
                x0 = denoiser(x, steps[i], labels, step_t=steps[begin])
                slope = (x0 - first) / (half_log_snrs[i] - at)
                estimate = estimate + (h + math.expm1(-h)) * slope
            x = sigma[i + 1] / sigma[begin] * start + alpha[i + 1] * estimate
            if on_step is not None:
                on_step(i + 1, n)
        begin += size
    return x


@torch.no_grad()
def euler_maruyama(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    fresh: Fresh,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, of SiT's stochastic equation with w = sigma (arXiv 2401.08740, equation 5).

    From t to t - h: x - h * (v - w * s / 2) + sqrt(w * h) * fresh, where v = (x - x0) / t is the
    velocity and s = (alpha * x0 - x) / sigma^2 the score. The last step, to t 0, takes x0.

    For EDM and flow. Raises ValueError on others.
    """
    _check_straight("euler_maruyama", schedule)
    steps, alpha, sigma, x = _start(schedule, noise, timesteps)
    n = len(steps) - 1
    for i in range(n):
        x0 = denoiser(x, steps[i], labels)
        if steps[i + 1] == 0:
            x = x0
        else:
            h, w = steps[i] - steps[i + 1], sigma[i]
            velocity, score = (x - x0) / steps[i], (alpha[i] * x0 - x) / sigma[i] ** 2
            x = x - h * (velocity - w / 2 * score) + math.sqrt(w * h) * fresh(i)
        if on_step is not None:
            on_step(i + 1, n)
    return x


@torch.no_grad()
def edm_churn(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    fresh: Fresh,
    churn: float = 40.0,
    t_min: float = 0.05,
    t_max: float = 50.0,
    noise_std: float = 1.003,
    on_step: OnStep | None = None,
) -> Tensor:
    """EDM's stochastic sampler: each step first adds noise (arXiv 2206.00364, algorithm 2).

    For EDM alone. Raises ValueError on others.

    Args:
        churn: S_churn; a step adds noise up to t * (1 + min(churn / n, sqrt(2) - 1)). The defaults
            are the paper's for ImageNet at 64 pixels.
        t_min, t_max: S_tmin and S_tmax; noise is added only between them.
        noise_std: S_noise, standard deviation of what is added.
        denoiser, schedule, noise, timesteps, labels, fresh, on_step: As for every sampler.
    """
    steps, alpha, _, x = _start(schedule, noise, timesteps)
    if any(a != 1 for a in alpha):
        raise ValueError(
            f"edm_churn: {type(schedule).__name__} shrinks the data as noise is added; use "
            f"euler_maruyama or another sampler."
        )
    n = len(steps) - 1
    for i in range(n):
        t = steps[i]
        if t_min <= t <= t_max and churn > 0:
            t = t * (1 + min(churn / n, math.sqrt(2) - 1))
            x = x + math.sqrt(t**2 - steps[i] ** 2) * noise_std * fresh(i)
        x = _heun_step(denoiser, x, t, steps[i + 1], labels, steps[i])
        if on_step is not None:
            on_step(i + 1, n)
    return x


SAMPLERS: Mapping[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
    "dpm_solver_singlestep": dpm_solver_singlestep,
    "euler_maruyama": euler_maruyama,
    "edm_churn": edm_churn,
}
STOCHASTIC = frozenset({"euler_maruyama", "edm_churn"})


def default_sampler(schedule: NoiseSchedule) -> str:
    """The sampler that is taken where none is named."""
    return "heun" if schedule.straight else "dpm_solver_pp"


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Tensor,
    labels: Tensor,
    *,
    sampler: str | None = None,
    fresh: Fresh | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample by a sampler's name.

    Args:
        denoiser, schedule, noise, timesteps, labels, on_step: As for every sampler.
        sampler: One of `SAMPLERS`. None: heun for straight paths, dpm_solver_pp for others.
        fresh: As for samplers of a stochastic equation; others leave it aside.

    Returns:
        (B, C, H, W), x at the last t.

    Raises:
        ValueError: No sampler has this name, it lacks `fresh`, or the timesteps cannot be walked.
    """
    sampler = sampler or default_sampler(schedule)
    if sampler not in SAMPLERS:
        raise ValueError(f"sample: sampler is {sampler!r}; use one of {', '.join(SAMPLERS)}.")
    options = {}
    if sampler in STOCHASTIC:
        if fresh is None:
            raise ValueError(f"sample: {sampler} adds noise at each step; pass `fresh`.")
        options["fresh"] = fresh
    walk = SAMPLERS[sampler]
    return walk(denoiser, schedule, noise, timesteps, labels, on_step=on_step, **options)


def check_sampler(sampler: str | None, schedule: NoiseSchedule) -> None:
    """Whether a sampler of this name can walk a schedule; ask before training or sampling.

    The sampler itself is asked, with an image of one number.

    Args:
        sampler: Its name; None as for `sample`.
        schedule: The objective.

    Raises:
        ValueError: No sampler has this name, or it refuses the schedule.
    """
    one, timesteps = torch.zeros(1, 1, 1, 1), torch.tensor([1.0, 0.5, 0.0])
    sample(
        lambda x, t, labels, routing=(), step_t=None: x,
        schedule,
        one,
        timesteps,
        one,
        sampler=sampler,
        fresh=lambda i: one,
    )


def _check_straight(sampler: str, schedule: NoiseSchedule) -> None:
    if not schedule.straight:
        raise ValueError(
            f"{sampler}: the path of {type(schedule).__name__} is not straight in t; use "
            f"dpm_solver_pp or euler."
        )


def _start(
    schedule: NoiseSchedule, noise: Tensor, timesteps: Tensor
) -> tuple[list[float], list[float], list[float], Tensor]:
    """The timesteps, alpha and sigma at each, and x at the first. Raises ValueError."""
    if (
        timesteps.dim() != 1
        or len(timesteps) < 2
        or not bool((timesteps[1:] < timesteps[:-1]).all())
    ):
        raise ValueError(
            f"A sampler's timesteps must be one row of at least two descending numbers, got shape "
            f"{tuple(timesteps.shape)}; objective.timesteps(steps) makes them."
        )
    if timesteps[-1] < 0:
        raise ValueError(f"A sampler's last t is {float(timesteps[-1])}; 0 is clean data.")
    if not timesteps[0] <= schedule.t_max or timesteps[0] == math.inf:
        raise ValueError(
            f"A sampler's first t is {float(timesteps[0])}; {type(schedule).__name__} ends at "
            f"{schedule.t_max}."
        )
    if noise.dim() != 4 or noise.numel() == 0:
        raise ValueError(
            f"A sampler's noise has shape {tuple(noise.shape)}; expected (B, C, H, W) and at least "
            f"one number."
        )
    if noise.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"A sampler's noise is {noise.dtype}; pass float32 and run the model under autocast."
        )
    exact = timesteps.to("cpu", torch.float64)
    alpha: list[float] = schedule.alpha(exact).tolist()
    sigma: list[float] = schedule.sigma(exact).tolist()
    return exact.tolist(), alpha, sigma, schedule.start_std(float(exact[0])) * noise


def _heun_step(
    denoiser: Denoiser, x: Tensor, here: float, there: float, labels: Tensor, step_t: float
) -> Tensor:
    slope = (x - denoiser(x, here, labels, step_t=step_t)) / here
    reached = x + (there - here) * slope
    if there > 0:
        slope = (slope + (reached - denoiser(reached, there, labels, step_t=step_t)) / there) / 2
        reached = x + (there - here) * slope
    return reached
