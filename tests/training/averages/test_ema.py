"""The average follows the recursion, touches nothing else and gives the weights back."""

from __future__ import annotations

import torch
from torch import nn

from tread_ssm.training.averages.ema import Ema, ramped


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    return model


def test_it_follows_the_recursion() -> None:
    model = make()
    ema = Ema(model, ramped(0.9))
    expected = model[0].weight.detach().clone().double()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.normal_()
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    torch.testing.assert_close(ema.average["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    model = make()
    ema = Ema(model, ramped(0.9))
    with torch.no_grad():
        model[0].weight.normal_()
    own = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        with ema.applied():
            assert torch.equal(model[0].weight, ema.average["0.weight"])
            assert not torch.equal(model[0].weight, own["0.weight"])
            raise RuntimeError
    except RuntimeError:
        pass
    assert all(torch.equal(t, own[n]) for n, t in model.state_dict().items())


def test_its_state_loads_into_the_model_and_into_another_average() -> None:
    model = make()
    ema = Ema(model, ramped(0.5))
    with torch.no_grad():
        model[0].weight.normal_()
    ema.update(0)
    state = ema.state()
    assert set(state) == set(model.state_dict())  # untrained parameters and buffers included
    other = make()
    other.load_state_dict(state)
    assert torch.equal(other[0].weight, ema.average["0.weight"])
    again = Ema(make(), ramped(0.5))
    again.load(state)
    assert all(torch.equal(t, ema.average[n]) for n, t in again.average.items())
