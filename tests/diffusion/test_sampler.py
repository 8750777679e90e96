"""Samplers against the exact ODE of Gaussian data: accuracy and order of convergence."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusion.oracle import MU, OBJECTIVES, Oracle, S, Tiny, gaussian, transported
from tread_ssm.diffusion import (
    EDM,
    SAMPLERS,
    Flow,
    NoisePrediction,
    Objective,
    check_sampler,
    dpm_solver_pp,
    euler,
    heun,
)
from tread_ssm.diffusion import sample as sample_by_name

Walk = Callable[..., Tensor]
LABELS = torch.zeros(1, dtype=torch.int64)
ORDERS: dict[str, tuple[Walk, float]] = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpm1": (partial(dpm_solver_pp, order=1), 1),
    "dpm2": (partial(dpm_solver_pp, order=2), 2),
    "dpm3": (partial(dpm_solver_pp, order=3), 3),
}
CASES = [
    pytest.param(objective, *ORDERS[name], id=f"{kind}-{name}")
    for kind, objective in OBJECTIVES.items()
    for name in ORDERS
    if not (kind == "noise" and name == "heun")
]


def inner_levels(objective: Objective, steps: int) -> Tensor:
    """A smooth schedule well inside the path, where orders show."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if isinstance(objective, EDM):
        return 5.0 * (0.05 / 5.0) ** ramp
    if isinstance(objective, Flow):
        return 0.95 - 0.9 * ramp
    return 900 - 840 * ramp


def error(objective: Objective, walk: Walk, timesteps: Tensor) -> float:
    noise = torch.tensor([-2.0, -0.5, 0.4, 1.5], dtype=torch.float64).view(1, 1, 2, 2)
    denoise = objective.denoiser(Oracle(objective, gaussian))
    found = walk(denoise, objective, noise, timesteps, LABELS)
    first = timesteps[:1].double()
    scale = torch.hypot(objective.alpha(first), objective.sigma(first))
    return float((found - transported(objective, scale * noise, timesteps)).abs().max())


@pytest.mark.parametrize(("objective", "walk", "order"), CASES)
def test_halving_the_step_shows_the_order(objective: Objective, walk: Walk, order: float) -> None:
    errors = []
    for n in (80, 160, 320):
        timesteps = inner_levels(objective, n)
        # A multistep method begins with a step of order 1; a tiny one, lest it sets the error.
        first = timesteps[:1] + (timesteps[:1] - timesteps[1:2]) / n
        errors.append(error(objective, walk, torch.cat([first, timesteps])))
    for coarse, fine in pairwise(errors):
        assert order - 0.2 < math.log2(coarse / fine) < order + 0.75


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_higher_order_is_more_accurate(objective: Objective) -> None:
    timesteps = inner_levels(objective, 80)
    first, second, third = (
        error(objective, partial(dpm_solver_pp, order=k), timesteps) for k in (1, 2, 3)
    )
    assert third < second < first / 5


def test_order_1_is_euler() -> None:
    for objective in OBJECTIVES.values():
        timesteps, denoise = objective.timesteps(7), objective.denoiser(Oracle(objective, gaussian))
        noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        a = euler(denoise, objective, noise, timesteps, LABELS)
        b = dpm_solver_pp(denoise, objective, noise, timesteps, LABELS, order=1)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("objective", "walk", "order"), CASES)
def test_noise_becomes_data_over_the_whole_schedule(
    objective: Objective, walk: Walk, order: float
) -> None:
    noise = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    denoise = objective.denoiser(Oracle(objective, gaussian))
    data = walk(denoise, objective, noise, objective.timesteps(60), LABELS)
    assert data.dtype == torch.float32
    # Not only the right numbers on average: each one where the ODE takes it. What the noisiest
    # t still holds of the mean (7 % under noise prediction) is lost by starting at pure noise.
    lost = (
        MU * float(objective.alpha(objective.timesteps(1)[:1])) if objective.kind == "noise" else 0
    )
    assert abs(float(data.mean()) - MU) < 0.02 + 0.5 * lost
    assert abs(float(data.std()) / S - 1) < (0.06 if order == 1 else 0.03)
    assert float(torch.corrcoef(torch.stack([noise.flatten(), data.flatten()]))[0, 1]) > 0.9999


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ORDERS)
def test_few_steps_are_finite_and_the_last_word_is_the_denoiser(
    objective: Objective, steps: int, name: str
) -> None:
    if isinstance(objective, NoisePrediction) and name == "heun":
        return
    said = []
    inner = objective.denoiser(Tiny(channels=1))

    def denoise(x: Tensor, t: float, labels: Tensor, routing: Any = ()) -> Tensor:
        said.append((inner(x, t, labels), t))
        return said[-1][0]

    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    walk, _ = ORDERS[name]
    seen = []
    report = lambda i, n: seen.append((i, n))  # noqa: E731
    x = walk(denoise, objective, noise, objective.timesteps(steps), LABELS, on_step=report)
    # A step to t 0 is of first order, so it ends on the estimate of the clean data itself.
    torch.testing.assert_close(x, said[-1][0], rtol=1e-4, atol=1e-4)
    assert len(said) == (2 * steps - 1 if name == "heun" else steps)
    assert all(t > 0 for _, t in said)
    assert seen == [(i, steps) for i in range(1, steps + 1)]
    assert not x.requires_grad


def test_heun_names_what_to_use_on_a_curved_path() -> None:
    objective = NoisePrediction()
    denoise, noise = objective.denoiser(Tiny()), torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"NoisePrediction.*dpm_solver_pp or euler"):
        heun(denoise, objective, noise, objective.timesteps(3), LABELS)


def test_sampling_by_name_is_the_sampler_of_that_name() -> None:
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for objective in OBJECTIVES.values():
        args = objective.denoiser(Tiny()), objective, noise, objective.timesteps(5), LABELS
        own = heun if objective.straight else dpm_solver_pp
        assert torch.equal(sample_by_name(*args), own(*args))
        assert torch.equal(sample_by_name(*args, sampler="euler"), euler(*args))


@pytest.mark.parametrize(
    ("timesteps", "noise", "message"),
    [
        (torch.tensor([0.0, 1.0]), torch.zeros(1, 2, 4, 4), "descending"),
        (torch.tensor([1.0]), torch.zeros(1, 2, 4, 4), "descending"),
        (torch.tensor([1.0, -1.0]), torch.zeros(1, 2, 4, 4), "last t is -1.0"),
        (torch.tensor([1.0, 0.0]), torch.zeros(1, 2, 4, 4).half(), "torch.float16"),
    ],
)
def test_impossible_walks_are_refused(timesteps: Tensor, noise: Tensor, message: str) -> None:
    flow = Flow()
    for walk, _ in ORDERS.values():
        with pytest.raises(ValueError, match=message):
            walk(flow.denoiser(Tiny()), flow, noise, timesteps, LABELS)
    with pytest.raises(ValueError, match="order is 4"):
        dpm_solver_pp(flow.denoiser(Tiny()), flow, noise, timesteps, LABELS, order=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_table_is_asked_whether_it_can_walk(name: str) -> None:
    check_sampler(name, Flow())
    if name == "heun":
        with pytest.raises(ValueError, match="not straight in t"):
            check_sampler(name, NoisePrediction())
    else:
        check_sampler(name, NoisePrediction())


def test_unknown_samplers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="sampler is 'huen'; use one of euler, heun"):
        check_sampler("huen", Flow())
    check_sampler(None, NoisePrediction())
