"""Comparisons at equal cost: the arithmetic on curves that are known, and the recorded file."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from benchmarks import curves

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "comparison.json"
STEPS = [100, 200, 400]


def row(name: str, factor: float, flops: float, tail: int = 0, seeds: int = 3) -> dict[str, Any]:
    """An arm whose loss is factor / sqrt(steps), a little higher for later seeds."""
    steps = STEPS[-1:] if tail else STEPS
    backbone = name.partition("-")[0]
    run = {
        str(seed): {
            "training_steps": STEPS,
            "training_loss": [1.0, 0.9, 0.8],
            "steps": steps,
            "loss": [factor * (1 + 0.01 * seed) / s**0.5 for s in steps],
            "distance_steps": steps,
            "distance": [10 * factor / s**0.5 for s in steps],
        }
        for seed in range(seeds)
    }
    return {
        "name": name,
        "backbone": backbone,
        "label": f"{backbone}, {name.partition('-')[2]}",
        "route": None if name.endswith("dense") else "{}",
        "parameters": 1000,
        "flops_per_step": flops,
        "dense_flops_per_step": 8.0,
        "dense_tail_steps": tail,
        "timed_as": f"{backbone}-routed" if tail else name,
        "tail_timed_as": f"{backbone}-dense",
        "runs": run,
    }


@pytest.fixture
def comparison(tmp_path: Path) -> curves.Comparison:
    times = {"dim-dense": 2.0, "dim-routed": 1.0, "dim-last": 1.0}
    arms = [
        row("dim-dense", 8.0, 8.0),
        row("dim-routed", 7.0, 6.0),
        row("dim-tail", 6.0, 6.0, tail=100),
        row("dim-last", 9.0, 5.0, seeds=1),
    ]
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({"times": {"seconds": times}, "arms": arms}))
    return curves.read_comparison(path)


def test_interpolation_is_exact_on_power_laws(comparison: curves.Comparison) -> None:
    loss = comparison.arms["dim-dense"].loss
    assert np.allclose(loss.at("steps", 289), [8 * (1 + 0.01 * s) / 17 for s in range(3)])
    assert np.allclose(loss.at("flops", 8 * 289), loss.at("seconds", 2 * 289))
    assert np.isnan(loss.at("steps", 401)).all() and np.isnan(loss.at("steps", 99)).all()


def test_arms_are_matched_where_the_cheaper_one_ends(comparison: curves.Comparison) -> None:
    dense, routed = comparison.arms["dim-dense"].loss, comparison.arms["dim-routed"].loss
    by = {x: curves.change(*curves.matched(dense, routed, x)) for x in curves.AXES}
    assert np.allclose(by["steps"], 7 / 8 - 1)
    assert np.allclose(by["flops"], 7 / 8 * 0.75**0.5 - 1)  # dense has had 300 steps
    assert np.allclose(by["seconds"], 7 / 8 * 0.5**0.5 - 1)  # and 200 steps in the same time


def test_a_dense_tail_costs_what_dense_steps_cost(comparison: curves.Comparison) -> None:
    tail = comparison.arms["dim-tail"]
    assert tail.tail and tail.loss.flops.tolist() == [300 * 6 + 100 * 8]
    assert tail.loss.seconds.tolist() == [300 * 1 + 100 * 2]


def test_only_seeds_that_both_arms_have_are_compared(comparison: curves.Comparison) -> None:
    dense, last = comparison.arms["dim-dense"].loss, comparison.arms["dim-last"].loss
    before, after = curves.matched(dense, last, "steps")
    assert np.allclose(before, 8 / 20) and np.allclose(after, 9 / 20) and len(before) == 1


def test_tables_hold_the_numbers(comparison: curves.Comparison) -> None:
    table = curves.matched_table(comparison, [("dim-dense", "dim-routed")], "loss")
    assert "0.404 → 0.353 (-12.5 ± 0.0 %)" in table.splitlines()[2]
    table = curves.matched_table(comparison, [("dim-dense", "dim-last")], "loss")
    assert "(+12.5 (one seed) %)" in table
    costs = curves.cost_table(comparison, ["dim-routed"])
    assert "| 0.75 | 1000 | 0.50 | 3 |" in costs  # ms per step


def test_every_picture_can_be_drawn(comparison: curves.Comparison, tmp_path: Path) -> None:
    names = list(comparison.arms)
    pairs = [("dim-dense", "dim-routed"), ("dim-dense", "dim-tail")]
    pictures = [
        curves.plot_curves(comparison, names),
        curves.plot_changes(comparison, pairs),
        curves.plot_training_loss(comparison, names),
        curves.plot_ends(comparison, names),
    ]
    for figure in pictures:
        figure.savefig(tmp_path / "picture.png")
    patches = pictures[1].axes[0].patches
    bars = [p for p in patches if isinstance(p, Rectangle) and p.get_height() < 0]
    assert len(bars) == 6  # every change of the loss is an improvement


def test_the_recorded_comparison_is_whole() -> None:
    recorded = curves.read_comparison(RECORDED)
    for name in ("dim-dense", "dim-routed", "dit-dense", "dit-routed"):
        arm = recorded.arms[name]
        assert arm.loss.values.shape[0] >= 3, f"{name} needs several seeds"
        assert np.isfinite(arm.loss.values).all() and np.isfinite(arm.distance.values).all()
        assert (recorded.folder / f"{name}.png").is_file()
    dim, dit = recorded.arms["dim-dense"], recorded.arms["dit-dense"]
    assert abs(dim.loss.flops[-1] / dit.loss.flops[-1] - 1) < 0.02
    assert recorded.facts["held_out_images"] >= 512
    for tried in recorded.facts["sweep"].values():
        losses = [t["loss"] for t in sorted(tried, key=lambda t: t["lr"])]
        assert 0 < losses.index(min(losses)) < len(losses) - 1, "the best rate is at the edge"
        assert min(losses) < statistics.median(losses)
