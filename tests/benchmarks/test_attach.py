"""The benchmark of attached routes compares steps that do the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.loading import module_of
from tread_ssm import attach

pytest.importorskip("diffusers")

PATH = Path(__file__).parents[2] / "benchmarks" / "attach.py"
SIZES = {"depth": 4, "heads": 1, "size": 8, "batch": 2}


def test_all_sides_take_the_same_steps() -> None:
    benchmark = module_of(PATH)
    losses = []
    for side in benchmark.SIDES:
        step = benchmark.training_step(side, **SIZES)
        losses.append(torch.stack([step(), step()]))
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert losses[0][1] < losses[0][0]


def test_ratios_are_to_the_plain_model() -> None:
    benchmark = module_of(PATH)
    found = benchmark.measure(**SIZES, repeats=1)
    seconds = found["seconds"]
    assert found["over_plain"] == {s: seconds[s] / seconds["plain"] for s in benchmark.SIDES[1:]}
    assert (found["tokens"], found["width"]) == (16, 64)


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """The smallest of several, so that other work on the machine does not count."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def test_hooks_of_a_dense_pass_take_less_than_a_hundredth_of_a_small_training_step() -> None:
    """Of 4 blocks of 384 channels and one image of 64 tokens; the hooks' cost has no size."""
    step = module_of(PATH).training_step("plain", depth=4, heads=6, size=16, batch=1)
    blocks, x = [nn.Identity() for _ in range(4)], torch.zeros(1, 64, 384)

    def passes() -> None:
        for _ in range(100):
            for block in blocks:
                block(x)

    step()
    plain = cpu_seconds(passes, 9)
    attach(blocks)
    assert (cpu_seconds(passes, 9) - plain) / 100 < 0.01 * cpu_seconds(step, 3)
