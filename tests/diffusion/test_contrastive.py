"""Contrastive flow matching: the pair, the sign, and the caveat that its docstring states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tread_ssm.diffusion import Contrastive, Flow
from tread_ssm.diffusion.auxiliary import Seen

B, SHAPE = 6, (2, 3, 5)


def batch(velocity: Tensor) -> Seen:
    rng = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(B, *SHAPE, generator=rng, dtype=torch.float64) for _ in range(2))
    return Seen(x, noise, velocity, None, None, 1)


def test_it_is_minus_the_error_against_the_neighbour() -> None:
    velocity = torch.randn(B, *SHAPE, dtype=torch.float64)
    seen = batch(velocity)
    errors = []
    for i in range(B):
        j = i + 1 if i % 2 == 0 else i - 1
        errors.append((velocity[i] - (seen.noise[j] - seen.x[j])).square().mean())
    torch.testing.assert_close(Contrastive().loss(seen), -torch.stack(errors).mean())


def test_its_minimum_overshoots_as_documented() -> None:
    seen, weight = batch(torch.zeros(B, *SHAPE, dtype=torch.float64)), 0.3
    own = seen.noise - seen.x
    other = own[[1, 0, 3, 2, 5, 4]]
    best = ((own - weight * other) / (1 - weight)).requires_grad_()
    total = (best - own).square().mean() + weight * Contrastive().loss(batch(best))
    (gradient,) = torch.autograd.grad(total, best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("predict", ["velocity", "data"])
def test_flow_hands_on_its_velocity(predict: str) -> None:
    x, noise = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    t = torch.linspace(0.1, 1, B)
    perfect = noise - x if predict == "velocity" else x
    flow = Flow(predict=predict)  # type: ignore[arg-type]
    terms = flow.loss_terms(
        lambda *_, routing: perfect, x, torch.zeros(B, dtype=torch.int64), t, noise
    )
    assert terms.velocity is not None
    torch.testing.assert_close(terms.velocity, noise - x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, float("nan")])
def test_weights_without_a_minimum_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="0 < weight < 1"):
        Contrastive(weight=weight)
