"""Objectives: paths, preconditioning, losses and denoisers against closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusion.oracle import OBJECTIVES, Oracle, Tiny
from tread_ssm.diffusion import EDM, Flow, NoisePrediction, Objective, euler
from tread_ssm.routing import Draw

each = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def batch(objective: Objective, size: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, labels, t, noise."""
    rng = torch.Generator().manual_seed(3)
    x, noise = (torch.randn(size, 2, 4, 4, generator=rng) for _ in range(2))
    return x, torch.arange(size) % 4, objective.sample_t(size, rng), noise


def wrong(value: Any) -> Any:
    """A value that the type checker need not see through."""
    return value


def wide(x: Tensor) -> Tensor:
    return x[:, None, None, None]


@each
def test_a_perfect_network_has_no_loss_and_denoises_exactly(objective: Objective) -> None:
    x, labels, t, noise = (t.double() if t.is_floating_point() else t for t in batch(objective))
    network = Oracle(objective, lambda *_: x)
    terms = objective.loss_terms(network, x, labels, t, noise)
    assert terms.loss_map.shape == x.shape
    assert terms.loss_map.max() < 1e-12
    clean = noise if isinstance(objective, NoisePrediction) else x
    torch.testing.assert_close(terms.reconstruction, clean, rtol=0, atol=1e-9)
    denoise = objective.denoiser(network)
    for i, one in enumerate(t.tolist()):
        torch.testing.assert_close(denoise(terms.noisy, one, labels)[i], x[i], rtol=0, atol=1e-9)


@each
def test_the_noisy_input_lies_on_the_path(objective: Objective) -> None:
    x, labels, t, noise = batch(objective)
    terms = objective.loss_terms(Tiny(), x, labels, t, noise)
    expected = wide(objective.alpha(t)) * x + wide(objective.sigma(t)) * noise
    torch.testing.assert_close(terms.noisy, expected)


@each
def test_the_loss_is_the_error_of_the_denoiser_in_known_units(objective: Objective) -> None:
    x, labels, t, noise = batch(objective)
    if isinstance(objective, Flow):
        t[0] = 0.02  # below the smallest divisor
    network = Tiny()
    terms = objective.loss_terms(network, x, labels, t, noise)
    for i, one in enumerate(t.tolist()):
        x0 = objective.denoiser(network)(terms.noisy, one, labels)[i]
        if isinstance(objective, EDM):
            weight = (one**2 + 0.5**2) / (one * 0.5) ** 2
        elif isinstance(objective, Flow):
            # Velocities differ by 1 / t times what the estimates of x0 differ by.
            weight = 1 / max(one, 0.05 if objective.predict == "data" else 0.0) ** 2
        else:
            at = torch.tensor(one, dtype=torch.float64)
            weight = float(objective.alpha(at) / objective.sigma(at)) ** 2
        expected = weight * (x0 - x[i]) ** 2
        torch.testing.assert_close(terms.loss_map[i], expected, rtol=2e-3, atol=1e-4)


@each
def test_levels_are_drawn_from_the_generator_alone(objective: Objective) -> None:
    first, second, other = (
        objective.sample_t(64, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert first.dtype == torch.float32 and first.shape == (64,)
    assert torch.equal(first, second) and not torch.equal(first, other)


@each
def test_times_descend_from_noise_to_clean_data(objective: Objective) -> None:
    for steps in (1, 2, 17):
        times = objective.timesteps(steps)
        assert times.shape == (steps + 1,) and bool((times[1:] < times[:-1]).all())
        assert float(objective.alpha(times[-1:])) == 1 and float(objective.sigma(times[-1:])) == 0
        assert float(objective.sigma(times[:1]) / objective.alpha(times[:1])) > 10
    with pytest.raises(ValueError, match="steps is 0"):
        objective.timesteps(0)


@each
def test_half_precision_networks_give_a_float32_loss(objective: Objective) -> None:
    x, labels, t, noise = batch(objective)
    network = Tiny().bfloat16()
    terms = objective.loss_terms(network, x, labels, t, noise)
    assert {terms.loss_map.dtype, terms.reconstruction.dtype} == {torch.float32}
    assert objective.denoiser(network)(x, float(t[0]), labels).dtype == torch.float32


@each
def test_wrong_shapes_are_refused_in_words(objective: Objective) -> None:
    x, labels, t, noise = batch(objective)
    with pytest.raises(ValueError, match="noise"):
        objective.loss_terms(Tiny(), x, labels, t, noise[:3])
    with pytest.raises(ValueError, match="t"):
        objective.loss_terms(Tiny(), x, labels, t[:3], noise)
    twice = lambda x, t, labels, *, routing=(): torch.cat([x, x], 1)  # noqa: E731
    with pytest.raises(ValueError, match="2 output channels"):
        objective.loss_terms(twice, x, labels, t, noise)


def test_edm_keeps_inputs_and_targets_at_unit_variance() -> None:
    edm = EDM(sigma_data=0.7)
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = edm.coefficients(sigma)
    one = torch.ones_like(sigma)
    torch.testing.assert_close(c_in**2 * (0.7**2 + sigma**2), one)
    # Variance of (x0 - c_skip * (x0 + sigma n)) / c_out, equation 119 of arXiv 2206.00364.
    target = ((1 - c_skip) ** 2 * 0.7**2 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target, one)
    torch.testing.assert_close((4 * c_noise).exp(), sigma)


def test_edm_weights_every_level_alike_for_an_untrained_network() -> None:
    """With output 0 the expected loss is 1 at every sigma: the weight is 1 / c_out^2."""
    edm = EDM()
    rng = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(3, 4, 64, 64, generator=rng)
    noise = torch.randn(3, 4, 64, 64, generator=rng)
    t = torch.tensor([0.01, 0.5, 50.0])
    nothing = lambda x, t, labels, *, routing=(): torch.zeros_like(x)  # noqa: E731
    terms = edm.loss_terms(nothing, x, torch.zeros(3, dtype=torch.int64), t, noise)
    torch.testing.assert_close(terms.loss_map.mean((1, 2, 3)), torch.ones(3), rtol=0.05, atol=0)


def test_edm_levels_are_log_normal_and_the_schedule_is_equation_5() -> None:
    edm = EDM()
    logs = edm.sample_t(20000, torch.Generator().manual_seed(0)).log()
    assert abs(float(logs.mean()) + 1.2) < 0.03 and abs(float(logs.std()) - 1.2) < 0.03
    times = edm.timesteps(40)
    for i in (0, 1, 20, 39):
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        assert math.isclose(float(times[i]), (high + i / 39 * (low - high)) ** 7)


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_flow_times_follow_their_distribution(time: str) -> None:
    flow = Flow(time=time, mean=0.4, std=0.8)  # type: ignore[arg-type]  # a str from pytest
    t = flow.sample_t(20000, torch.Generator().manual_seed(0))
    assert float(t.min()) >= 0 and float(t.max()) <= 1
    median = 0.5 if time == "uniform" else 1 / (1 + math.exp(-0.4))
    assert abs(float(t.median()) - median) < 0.01
    assert abs(float((t < 0.1).float().mean()) - (0.1 if time == "uniform" else 0.0006)) < 0.01


def test_noise_prediction_has_the_chain_of_scaled_linear_betas() -> None:
    objective = NoisePrediction()
    product, t = 1.0, torch.arange(1001, dtype=torch.float64)
    alpha, sigma = objective.alpha(t), objective.sigma(t)
    for i in range(1000):
        root = 0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)
        product *= 1 - root**2
        assert math.isclose(float(alpha[i + 1]) ** 2, product, rel_tol=1e-9)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    between = objective.alpha(torch.tensor([499.5], dtype=torch.float64))
    torch.testing.assert_close(between, (alpha[499:500] * alpha[500:501]).sqrt())
    timesteps = objective.sample_t(50000, torch.Generator().manual_seed(0))
    assert timesteps.unique().tolist() == list(range(1, 1001))


def test_noise_prediction_tells_the_network_0_to_999() -> None:
    told = []

    def network(x: Tensor, t: Tensor, labels: Tensor, *, routing: object = ()) -> Tensor:
        told.append(t.tolist())
        return x

    x = torch.zeros(2, 1, 2, 2)
    objective = NoisePrediction()
    objective.loss_terms(network, x, torch.zeros(2).long(), torch.tensor([1.0, 1000.0]), x)
    objective.denoiser(network)(x, 1000.0, torch.zeros(2).long())
    assert told == [[0.0, 999.0], [999.0, 999.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(p_std=0.0), "p_std is 0.0"),
        (lambda: EDM(sigma_data=-1.0), "sigma_data is -1.0"),
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), "sigma_min"),
        (lambda: EDM(p_mean=math.nan), "p_mean is nan"),
        (lambda: Flow(time=wrong("beta")), "time is 'beta'; use one of uniform, logit_normal"),
        (lambda: Flow(predict=wrong("noise")), "predict is 'noise'"),
        (lambda: Flow(std=0.0), "std is 0.0"),
        (lambda: NoisePrediction(n_steps=0), "n_steps is 0"),
        (lambda: NoisePrediction(beta_end=1.0), "beta_end 1.0"),
        (lambda: NoisePrediction(beta_start=0.1, beta_end=0.01), "beta_start is 0.1"),
    ],
)
def test_impossible_numbers_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]  # a lambda


def test_linear_betas_are_the_chain_of_dit() -> None:
    objective = NoisePrediction(betas="linear", beta_start=1e-4, beta_end=0.02)
    alpha, product = objective.alpha(torch.arange(1001, dtype=torch.float64)), 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + i / 999 * (0.02 - 1e-4))
        assert math.isclose(float(alpha[i + 1]) ** 2, product, rel_tol=1e-9)
    with pytest.raises(ValueError, match="betas is 'cosine'; use 'scaled_linear' or 'linear'"):
        NoisePrediction(betas=wrong("cosine"))


def test_a_learned_variance_is_left_aside_in_sampling_and_refused_in_training() -> None:
    x, labels, t, noise = batch(NoisePrediction())
    plain = Tiny()

    def learned(x: Tensor, t: Tensor, labels: Tensor, *, routing: Any = ()) -> Tensor:
        output = plain(x, t, labels, routing=routing)
        return torch.cat([output, torch.full_like(output, 9.0)], dim=1)

    denoise, same = NoisePrediction().denoiser(learned), NoisePrediction().denoiser(plain)
    assert torch.equal(denoise(x, 500.0, labels), same(x, 500.0, labels))
    with pytest.raises(ValueError, match="build it with 2 output channels"):
        NoisePrediction().loss_terms(learned, x, labels, t, noise)
    with pytest.raises(ValueError, match="build it with 2 output channels"):
        EDM().denoiser(learned)(x, 1.0, labels)


def test_a_network_of_sits_code_is_asked_as_its_own_sampler_asks_it() -> None:
    """SiT: time runs from noise at 0 to data at 1, dx / dt = v, and a variance is ignored."""

    def sit(x: Tensor, t: Tensor, labels: Tensor, *, routing: Draw = ()) -> Tensor:
        velocity = torch.sin(3 * x) * (1 + t[:, None, None, None])
        return torch.cat([velocity, torch.full_like(x, 7.0)], dim=1)

    flow, labels = Flow(sit=True), torch.zeros(2, dtype=torch.int64)
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    x, n = noise, 8
    for i in range(n):  # Euler along SiT's time
        x = x + sit(x, torch.full((2,), i / n).double(), labels)[:, :3] / n
    found = euler(flow.denoiser(sit), flow, noise, flow.timesteps(n), labels)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)

    data, t = torch.randn_like(noise), torch.tensor([0.2, 0.7]).double()
    terms = flow.loss_terms(sit, data, labels, t, noise)
    mixed = (1 - t.view(2, 1, 1, 1)) * data + t.view(2, 1, 1, 1) * noise
    expected = (sit(mixed, 1 - t, labels)[:, :3] - (data - noise)) ** 2
    torch.testing.assert_close(terms.loss_map, expected)
    with pytest.raises(ValueError, match="predict a velocity; leave predict"):
        Flow(sit=True, predict="data")


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_a_shift_multiplies_the_ratio_of_noise_to_data(time: str) -> None:
    plain, shifted = (Flow(time=time, shift=s) for s in (1.0, 2.5))  # type: ignore[arg-type]
    samples = [
        flow.sample_t(500, torch.Generator().manual_seed(3)).double() for flow in (plain, shifted)
    ]
    steps = [flow.timesteps(7) for flow in (plain, shifted)]
    assert steps[1][0] == 1 and steps[1][-1] == 0
    for before, after in (samples, [t[1:-1] for t in steps]):
        # sigma / alpha = t / (1 - t), multiplied out
        expected = 2.5 * before * (1 - after)
        torch.testing.assert_close(after * (1 - before), expected, rtol=0, atol=1e-6)
    rng = torch.Generator().manual_seed(3)
    drawn = torch.rand(500, generator=rng)
    if time == "logit_normal":
        drawn = torch.randn(500, generator=torch.Generator().manual_seed(3)).sigmoid()
    assert torch.equal(samples[0], drawn.double())  # 1 changes no bit
    assert torch.equal(steps[0], torch.linspace(1, 0, 8, dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_a_shift_that_is_none_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="Flow: shift is"):
        Flow(shift=shift)
