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
    dpm_solver_singlestep,
    edm_churn,
    euler,
    euler_maruyama,
    heun,
)
from tread_ssm.diffusion import sample as sample_by_name
from tread_ssm.diffusion.dpm_solver import step_sizes
from tread_ssm.models import DiTConfig

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


N3 = (335, 671)
WHOLE = [
    *CASES,
    *(pytest.param(o, dpm_solver_singlestep, 3, id=f"{k}-single") for k, o in OBJECTIVES.items()),
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
    scale = objective.start_std(float(timesteps[0]))
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


@pytest.mark.parametrize(("n", "third"), [(14, False), (15, True)])
def test_the_last_step_but_one_is_of_order_3_from_15_steps_on_as_in_diffusers(
    n: int, third: bool
) -> None:
    """What the last call sees is then what a walk that stops there gives, whose steps are all of
    order 3."""
    objective, seen = NoisePrediction(), []
    inner = objective.denoiser(Oracle(objective, gaussian))

    def denoise(x: Tensor, t: float, labels: Tensor, *rest: Any, **named: Any) -> Tensor:
        seen.append(x)
        return inner(x, t, labels)

    noise = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    timesteps = objective.timesteps(n)
    dpm_solver_pp(denoise, objective, noise, timesteps, LABELS)
    stops = dpm_solver_pp(inner, objective, noise, timesteps[:-1], LABELS)
    assert torch.equal(seen[-1], stops) == third


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_singlesteps_converge_with_order_3(objective: Objective) -> None:
    # Threes and a two, so no step is of order 1. The order comes late: inner timesteps lie at a
    # third and two thirds of a step's half log-SNR only where steps are short.
    coarse, fine = (error(objective, dpm_solver_singlestep, inner_levels(objective, n)) for n in N3)
    assert 2.7 < math.log(coarse / fine) / math.log(N3[1] / N3[0]) < 3.3


def test_a_singlestep_is_its_equation() -> None:
    """Singlestep DPM-Solver++ of order 3, then 2, as its authors write it: r1, r2 and phis."""
    objective = NoisePrediction()
    denoise = objective.denoiser(Oracle(objective, gaussian))
    noise = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    timesteps = torch.tensor([900.0, 800, 650, 500, 300, 200], dtype=torch.float64)
    alpha, sigma = objective.alpha(timesteps), objective.sigma(timesteps)
    lam = (alpha / sigma).log()
    x, begin = noise, 0
    for r_at in ((1, 2), (1,)):
        end = begin + len(r_at) + 1
        h = lam[end] - lam[begin]
        r = [(lam[begin + k] - lam[begin]) / h for k in r_at]
        d_0 = denoise(x, float(timesteps[begin]), LABELS)
        s_1 = begin + 1
        phi = torch.expm1(-r[0] * h)
        x_1 = sigma[s_1] / sigma[begin] * x - alpha[s_1] * phi * d_0
        d = denoise(x_1, float(timesteps[s_1]), LABELS) - d_0
        if len(r) == 2:
            s_2 = begin + 2
            phi = torch.expm1(-r[1] * h)
            x_2 = sigma[s_2] / sigma[begin] * x - alpha[s_2] * phi * d_0
            x_2 = x_2 + r[1] / r[0] * alpha[s_2] * (phi / (r[1] * h) + 1) * d
            d = denoise(x_2, float(timesteps[s_2]), LABELS) - d_0
        phi = torch.expm1(-h)
        x = sigma[end] / sigma[begin] * x - alpha[end] * phi * d_0
        x = x + alpha[end] * (phi / h + 1) / r[-1] * d
        begin = end
    found = dpm_solver_singlestep(denoise, objective, noise, timesteps, LABELS)
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(50, [3] * 16 + [2]), (49, [3] * 16 + [1]), (51, [3] * 16 + [2, 1]), (2, [2]), (0, [])],
)
def test_singlesteps_are_grouped_as_dpm_solver_fast_does(n: int, sizes: list[int]) -> None:
    assert step_sizes(n, starts=False, ends=False) == sizes
    assert step_sizes(n + 1, starts=False, ends=True) == [*sizes, 1]
    assert step_sizes(n + 2, starts=True, ends=True) == [1, *sizes, 1]


def test_order_1_is_euler() -> None:
    for objective in OBJECTIVES.values():
        timesteps, denoise = objective.timesteps(7), objective.denoiser(Oracle(objective, gaussian))
        noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        a = euler(denoise, objective, noise, timesteps, LABELS)
        b = dpm_solver_pp(denoise, objective, noise, timesteps, LABELS, order=1)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("objective", "walk", "order"), WHOLE)
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
@pytest.mark.parametrize("name", [*ORDERS, "singlestep"])
def test_few_steps_are_finite_and_the_last_word_is_the_denoiser(
    objective: Objective, steps: int, name: str
) -> None:
    if isinstance(objective, NoisePrediction) and name == "heun":
        return
    said = []
    inner = objective.denoiser(Tiny(channels=1))

    def denoise(
        x: Tensor, t: float, labels: Tensor, routing: Any = (), *, step_t: Any = None
    ) -> Tensor:
        said.append((inner(x, t, labels), t))
        return said[-1][0]

    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    walk = dpm_solver_singlestep if name == "singlestep" else ORDERS[name][0]
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
        (torch.tensor([1.5, 0.0]), torch.zeros(1, 2, 4, 4), r"first t is 1\.5; Flow ends at 1\.0"),
        (torch.tensor([math.inf, 0.0]), torch.zeros(1, 2, 4, 4), "first t is inf"),
        (torch.tensor([1.0, 0.0]), torch.zeros(0, 2, 4, 4), "at least one number"),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 4, 4), r"expected \(B, C, H, W\)"),
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
    for objective in (EDM(), Flow(), NoisePrediction()):
        refused = {"heun": "not straight", "euler_maruyama": "not straight"}.get(name)
        if isinstance(objective, EDM) or (refused and isinstance(objective, Flow)):
            refused = None
        if name == "edm_churn" and not isinstance(objective, EDM):
            refused = "shrinks the data"
        if refused is None:
            check_sampler(name, objective)
        else:
            with pytest.raises(ValueError, match=refused):
                check_sampler(name, objective)


def test_unknown_samplers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="sampler is 'huen'; use one of euler, heun"):
        check_sampler("huen", Flow())
    check_sampler(None, NoisePrediction())


def test_edm_starts_from_sigma_max_times_the_noise() -> None:
    seen: list[Tensor] = []

    def denoise(
        x: Tensor, t: float, labels: Tensor, routing: Any = (), *, step_t: Any = None
    ) -> Tensor:
        seen.append(x)
        return x

    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    heun(denoise, EDM(), noise, EDM().timesteps(2), LABELS)
    assert torch.equal(seen[0], 80 * noise)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_noise_in_float64_runs_a_network_of_float32(objective: Objective) -> None:
    torch.manual_seed(0)
    network = DiTConfig(image_size=4, channels=2, n_classes=3, dim=16, depth=1, heads=2).build()
    with torch.no_grad():
        for p in network.parameters():  # a fresh one predicts 0
            p.add_(0.1 * torch.randn_like(p))
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    args = objective, noise, objective.timesteps(4), LABELS
    single = sample_by_name(objective.denoiser(network), *args)
    double = sample_by_name(objective.denoiser(network), objective, noise.double(), *args[2:])
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
    assert not torch.equal(single.double(), double)


def fresh_noise(seed: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda i: torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64
    )


def test_euler_maruyama_is_its_equation() -> None:
    flow, fresh = Flow(), fresh_noise(5, 1, 1, 2, 3)
    x = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    denoise = flow.denoiser(Oracle(flow, gaussian))
    timesteps = torch.tensor([1.0, 0.6, 0.25, 0.0], dtype=torch.float64)
    found = euler_maruyama(denoise, flow, x, timesteps, LABELS, fresh=fresh)
    for i, (t, h) in enumerate([(1.0, 0.4), (0.6, 0.35)]):
        x0 = denoise(x, t, LABELS)
        noise = (x - (1 - t) * x0) / t  # the estimate of it
        # dx/dt = noise - x0; the score is -noise / t; w = t.
        x = x - h * (noise - x0 + t / 2 * noise / t) + math.sqrt(t * h) * fresh(i)
    torch.testing.assert_close(found, denoise(x, 0.25, LABELS), rtol=1e-9, atol=1e-9)


def test_edm_churn_is_its_algorithm_and_heun_without_churn() -> None:
    edm, fresh = EDM(), fresh_noise(5, 1, 1, 2, 3)
    noise = torch.randn(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    denoise = edm.denoiser(Oracle(edm, gaussian))
    timesteps = torch.tensor([60.0, 2.0, 0.01, 0.0], dtype=torch.float64)
    args = denoise, edm, noise, timesteps, LABELS
    assert torch.equal(edm_churn(*args, fresh=fresh, churn=0.0), heun(*args))
    x = 60 * noise
    for i, (t, after) in enumerate([(60.0, 2.0), (2.0, 0.01), (0.01, 0.0)]):
        reached = t
        if 0.05 <= t <= 50:
            reached = t * (1 + min(0.6 / 3, math.sqrt(2) - 1))
            x = x + math.sqrt(reached**2 - t**2) * 1.003 * fresh(i)
        slope = (x - denoise(x, reached, LABELS)) / reached
        guess = x + (after - reached) * slope
        if after > 0:
            slope = (slope + (guess - denoise(guess, after, LABELS)) / after) / 2
        x = x + (after - reached) * slope
    torch.testing.assert_close(edm_churn(*args, fresh=fresh, churn=0.6), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("objective", "walk", "steps"),
    [(Flow(), euler_maruyama, 200), (EDM(), edm_churn, 60)],
    ids=["flow", "edm"],
)
def test_stochastic_samplers_reach_the_data(objective: Objective, walk: Walk, steps: int) -> None:
    noise = torch.randn(1, 1, 150, 150, generator=torch.Generator().manual_seed(0)).double()
    denoise = objective.denoiser(Oracle(objective, gaussian))
    timesteps = objective.timesteps(steps)
    data = walk(denoise, objective, noise, timesteps, LABELS, fresh=fresh_noise(9, 1, 1, 150, 150))
    assert abs(float(data.mean()) - MU) < 0.02
    assert abs(float(data.std()) / S - 1) < 0.04
    # It forgets where it started, unlike the samplers of the ordinary equation.
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), data.flatten()]))[0, 1])) < 0.7


def test_a_stochastic_sampler_needs_noise() -> None:
    flow = Flow()
    noise = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="euler_maruyama adds noise at each step; pass `fresh`"):
        sample_by_name(
            flow.denoiser(Tiny()), flow, noise, flow.timesteps(3), LABELS, sampler="euler_maruyama"
        )
