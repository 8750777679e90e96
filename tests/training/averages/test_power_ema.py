"""Power-function averages: the width is what it says, and two of them give any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tread_ssm.training.averages.ema import Ema
from tread_ssm.training.averages.power_ema import (
    PosthocEma,
    Profile,
    file_of,
    gamma_of,
    power_decay,
    weights_of,
    width_in,
)

WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.28)


def profile(width: float, steps: int) -> np.ndarray:
    """What each step counts, by running the recursion on unit vectors."""
    decay, counts = power_decay(width), np.zeros(steps)
    for step in range(steps):
        counts *= decay(step)
        counts[step] += 1 - decay(step)
    return counts


@pytest.mark.parametrize("width", WIDTHS)
def test_the_averaged_steps_spread_as_wide_as_the_width_says(width: float) -> None:
    steps = 4000
    counts = profile(width, steps)
    assert counts.sum() == pytest.approx(1)
    at = np.arange(steps) + 0.5
    mean = (counts * at).sum()
    assert ((counts * (at - mean) ** 2).sum()) ** 0.5 / steps == pytest.approx(width, rel=1e-3)
    # The power function itself: step t counts the area below tau^gamma from t - 1 to t.
    edges = (np.arange(steps + 1) / steps) ** (gamma_of(width) + 1)
    np.testing.assert_allclose(counts, np.diff(edges), rtol=1e-9, atol=1e-15)


def test_published_widths_have_the_published_powers() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


def walked(steps: int, every: int, width: float) -> tuple[Ema, list[Ema], list[Profile]]:
    """A direct average of parameters on a random walk, and snapshots of two others."""
    torch.manual_seed(0)
    model = nn.Linear(7, 5).double()
    direct = Ema(model, power_decay(width))
    kept = {w: Ema(model, power_decay(w)) for w in (0.05, 0.1)}
    snapshots, profiles = [], []
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=steps**-0.5)
        for ema in (direct, *kept.values()):
            ema.update(step)
        if (step + 1) % every == 0:
            for w, ema in kept.items():
                copy = Ema(model, power_decay(w))
                copy.load(ema.state())
                snapshots.append(copy)
                profiles.append(Profile(gamma_of(w), step + 1))
    return direct, snapshots, profiles


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15, 0.25])
def test_the_sum_of_snapshots_is_the_average_that_was_tracked_directly(width: float) -> None:
    steps = 800
    direct, snapshots, profiles = walked(steps, 50, width)
    weights = weights_of(profiles, Profile(gamma_of(width), steps))
    assert weights.sum() == pytest.approx(1)
    for name, expected in direct.average.items():
        got = sum(float(w) * s.average[name] for w, s in zip(weights, snapshots, strict=True))
        error = (got - expected).norm() / expected.norm()
        other = (snapshots[-1].average[name] - expected).norm() / expected.norm()
        # A width that was kept is itself; the others are far nearer than the nearest snapshot.
        limit = 1e-4 if width in (0.05, 0.1) else 0.05 * float(other)
        assert float(error) < max(limit, 1e-3), (float(error), float(other))


@pytest.mark.parametrize("width", [0.0, 0.29, -1.0, float("nan")])
def test_a_width_without_a_profile_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"it must satisfy 0 < width <= 0\.28"):
        gamma_of(width)
    with pytest.raises(ValueError, match="it must satisfy 0 < width"):
        PosthocEma(every=5, widths=(0.05, width))


def test_two_equal_widths_are_refused_and_names_hold_the_width() -> None:
    with pytest.raises(ValueError, match="they must differ"):
        PosthocEma(every=5, widths=(0.05, 0.05))
    with pytest.raises(ValueError, match="every is 0"):
        PosthocEma(every=0)
    assert width_in(Path(file_of(0.075))) == 0.075
