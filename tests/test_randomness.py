"""Generators are a function of (seed, number, purpose) alone."""

from __future__ import annotations

import torch

from tread_ssm.randomness import generator


def first(seed: int, number: int, purpose: str = "step") -> int:
    return generator(seed, number, purpose).initial_seed()


def test_the_same_arguments_give_the_same_numbers() -> None:
    a, b = (torch.randn(5, generator=generator(3, 7, "step")) for _ in range(2))
    assert torch.equal(a, b)


def test_no_two_steps_of_a_run_share_a_state() -> None:
    # torch's CPU generator looks at 32 bits: with a mere hash, 100,000 steps would collide with
    # probability 0.69.
    states = {first(0, n) & 0xFFFFFFFF for n in range(100_000)}
    assert len(states) == 100_000


def test_seeds_and_purposes_do_not_repeat_one_another() -> None:
    runs = [[first(s, n, p) for n in range(200)] for s in range(5) for p in ("step", "order")]
    assert len({n for run in runs for n in run}) == 2000
    a, b = torch.randn(2, 10_000, generator=generator(0, 0, "step"))
    c = torch.randn(10_000, generator=generator(0, 1, "step"))
    for other in (b, c):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.05
