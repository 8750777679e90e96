"""The benchmark of attached routes compares steps that do the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.loading import module_of

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
    assert found["hooks_seconds"] > 0 and found["hooks_over_plain"] == (
        found["hooks_seconds"] / seconds["plain"]
    )
