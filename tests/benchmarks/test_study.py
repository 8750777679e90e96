"""The study: its runs, the arithmetic on rows that are known, and the recorded file."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from matplotlib.patches import Rectangle
from PIL import Image

from benchmarks.study import curves, guidance, pace, plots, results, tables
from benchmarks.study.__main__ import main as study
from benchmarks.study.arms import ARMS, SETTINGS, arm_of, rate_arms
from benchmarks.study.jobs import Job, configure, jobs, missing, wanted
from benchmarks.study.run import cost_of, prepare, run
from tread_ssm.errors import ConfigError

ROOT = Path(__file__).parents[2]
STEPS = [100, 200, 400]


def rows_of(
    name: str,
    factor: float,
    flops: float,
    seconds: float,
    steps: Sequence[int] = STEPS,
    seeds: int = 3,
) -> list[dict[str, Any]]:
    """An arm whose loss is factor / sqrt(steps), a little higher for later seeds."""
    return [
        {
            "arm": name,
            "seed": seed,
            "steps": s,
            "start": 0,
            "cpu_seconds": seconds * s,
            "parameters": 1000,
            "flops": flops * s,
            "training_loss": 1.0 - s / 1000,
            "loss": factor * (1 + 0.01 * seed) / s**0.5,
            "distance": 10 * factor / s**0.5 if s > 100 else None,
        }
        for seed in range(seeds)
        for s in steps
    ]


def with_tail(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trained from the trunk's step 300, the last 100 steps at 8 FLOPs and 2 seconds."""
    changed = {"start": 300, "flops": 300 * 6.0 + 100 * 8.0, "cpu_seconds": 200.0}
    return [row | changed for row in rows]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        *rows_of("dim-dense", 8.0, 8.0, 2.0),
        *rows_of("dim-50", 7.0, 6.0, 1.0),
        *with_tail(rows_of("dim-50-tail", 6.0, 6.0, 1.0, steps=[400])),
        *rows_of("dim-last", 9.0, 5.0, 1.0, seeds=1),
    ]


@pytest.fixture
def arms(rows: list[dict[str, Any]]) -> dict[str, curves.Recorded]:
    return curves.recorded(rows)


def test_interpolation_is_exact_on_power_laws(arms: dict[str, curves.Recorded]) -> None:
    loss = arms["dim-dense"].loss
    assert np.allclose(loss.at("steps", 289), [8 * (1 + 0.01 * s) / 17 for s in range(3)])
    assert np.allclose(loss.at("flops", 8 * 289), loss.at("seconds", 2 * 289))
    assert np.isnan(loss.at("steps", 401)).all() and np.isnan(loss.at("steps", 99)).all()


def test_arms_are_matched_where_the_cheaper_one_ends(arms: dict[str, curves.Recorded]) -> None:
    dense, routed = arms["dim-dense"].loss, arms["dim-50"].loss
    by = {x: curves.change(*curves.matched(dense, routed, x)) for x in curves.AXES}
    assert np.allclose(by["steps"], 7 / 8 - 1)
    assert np.allclose(by["flops"], 7 / 8 * 0.75**0.5 - 1)  # dense has had 300 steps
    assert np.allclose(by["seconds"], 7 / 8 * 0.5**0.5 - 1)  # and 200 steps in the same time


def test_what_it_takes_to_reach_the_dense_end(arms: dict[str, curves.Recorded]) -> None:
    dense, routed = arms["dim-dense"].loss, arms["dim-50"].loss
    # 7 / sqrt(s) = 8 / sqrt(400) at s = 306.25
    assert np.allclose(curves.reach(dense, routed, "steps"), 306.25 / 400)
    assert np.allclose(curves.reach(dense, routed, "flops"), 306.25 / 400 * 6 / 8)
    assert np.allclose(curves.reach(dense, routed, "seconds"), 306.25 / 400 / 2)
    assert np.isnan(curves.reach(routed, dense, "steps")).all()  # dense never gets there


def test_seconds_that_were_not_measured_are_not_compared(
    arms: dict[str, curves.Recorded],
) -> None:
    dense, routed = arms["dim-dense"].loss, arms["dim-50"].loss
    again = replace(routed, seconds=0 * routed.seconds)  # rows made of checkpoints that were there
    for a, b in ((dense, again), (again, dense)):
        before, after = curves.matched(a, b, "seconds")
        assert np.isnan(before).all() and np.isnan(after).all()
        assert np.isnan(curves.reach(a, b, "seconds")).all()
    assert np.allclose(curves.reach(dense, again, "flops"), curves.reach(dense, routed, "flops"))


def test_an_interval_covers_what_t_says() -> None:
    # Two-sided 95 % of t with 2 degrees of freedom: 4.303.
    mean, half = curves.interval(np.array([0.1, 0.2, 0.3]))
    assert mean == pytest.approx(0.2) and half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert np.isnan(curves.interval(np.array([0.1]))[1])


def test_a_dense_tail_costs_what_dense_steps_cost(arms: dict[str, curves.Recorded]) -> None:
    tail = arms["dim-50-tail"]
    assert tail.tail and tail.loss.flops.tolist() == [300 * 6 + 100 * 8]
    assert tail.loss.seconds.tolist() == [300 * 1 + 100 * 2]


def test_only_seeds_that_both_arms_have_are_compared(arms: dict[str, curves.Recorded]) -> None:
    before, after = curves.matched(arms["dim-dense"].loss, arms["dim-last"].loss, "steps")
    assert np.allclose(before, 8 / 20) and np.allclose(after, 9 / 20) and len(before) == 1


def test_checkpoints_that_not_all_seeds_have_are_left_out(rows: list[dict[str, Any]]) -> None:
    longer = rows_of("dim-dense", 8.0, 8.0, 2.0, steps=[800], seeds=1)
    assert curves.recorded([*rows, *longer])["dim-dense"].loss.steps.tolist() == STEPS


def test_tables_hold_the_numbers(
    arms: dict[str, curves.Recorded], rows: list[dict[str, Any]]
) -> None:
    table = tables.matched_table(arms, [("dim-dense", "dim-50")], "loss")
    assert "0.404 → 0.353 (-12.5 ± 0.0 %)" in table.splitlines()[2]
    table = tables.matched_table(arms, [("dim-dense", "dim-last")], "loss")
    assert "0.400 → 0.450 (+12.5 %, one seed)" in table
    costs = tables.cost_table(arms, ["dim-50"])
    assert "| 0.75 | 1000 | 0.50 | 3 |" in costs  # ms per step
    assert "| DiM, drop 0.5 | 400 | 3 | 0.75 | 0.3535 ± 0.0035 | 3.50 ± 0.00 | 1000 |" in (
        tables.table(rows)
    )


def test_every_picture_can_be_drawn(arms: dict[str, curves.Recorded], tmp_path: Path) -> None:
    names = list(arms)
    pairs = [("dim-dense", "dim-50"), ("dim-dense", "dim-50-tail")]
    pictures = [
        plots.plot_curves(arms, names),
        plots.plot_changes(arms, pairs),
        plots.plot_training_loss(arms, names),
        plots.plot_ends(arms, names),
    ]
    for figure in pictures:
        figure.savefig(tmp_path / "picture.png")
    patches = pictures[1].axes[0].patches
    bars = [p for p in patches if isinstance(p, Rectangle) and p.get_height() < 0]
    assert len(bars) == 6  # every change of the loss is an improvement


def test_arms_are_what_their_names_say(tmp_path: Path) -> None:
    assert len({arm.name for arm in (*ARMS, *rate_arms())}) == len((*ARMS, *rate_arms()))
    for job in jobs():
        setting = SETTINGS[job.arm.setting]
        config = configure(tmp_path, setting, job)
        if job.arm.trunk is None:
            prepare(tmp_path, job, small=False)  # its parts fit each other
        assert config.model.image_size == setting.image_size
        assert config.train.optimizer.lr == job.arm.rate
        dense = "dense" in job.arm.name
        assert (config.routing.routes == ()) == dense
        if "-75" in job.arm.name:
            assert config.routing.routes[0].drop == 0.75
        if job.arm.partner:
            partner = configure(tmp_path, setting, Job(arm_of(job.arm.partner), 0, job.steps))
            ours, theirs = config.model, partner.model
            assert (ours.kind, ours.dim, ours.depth) == (theirs.kind, theirs.dim, theirs.depth)
            assert config != replace(partner, name=config.name)
    with pytest.raises(ValueError, match="dim-51 is no arm of the study; use one of dim-dense"):
        arm_of("dim-51")


def test_seconds_are_those_of_steps_that_took_turns(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    found = pace.measure(["dim-50", "dim-muon"], tmp_path, repeats=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert found["seconds"].keys() == {"dim-50", "dim-muon"} and found["machine"]
    pace.record(found, tmp_path / "paces.json")
    seconds = pace.recorded(tmp_path / "paces.json")
    arms = curves.recorded(rows, seconds)
    assert arms["dim-50"].loss.seconds.tolist() == [s * seconds["dim-50"] for s in STEPS]
    assert arms["dim-dense"].loss.seconds.tolist() == [2.0 * s for s in STEPS]
    assert pace.recorded(tmp_path / "none.json") == {}


@pytest.mark.slow
def test_runs_are_recorded_one_by_one_and_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    toy = ["--toy", "--workers", "1", "--results", str(out), "--work", str(tmp_path / "work")]
    study([*toy, "--seeds", "0", "--only", "dim-50", "dim-50-tail"])
    rows = results.read(out)
    assert [(r["arm"], r["steps"], r["start"]) for r in rows] == [
        ("dim-50", 8, 0),
        ("dim-50-tail", 8, 6),
    ]
    routed, tail = rows
    assert routed["flops"] < tail["flops"] and routed["parameters"] == tail["parameters"]
    assert routed["loss"] != tail["loss"] and np.isfinite([r["distance"] for r in rows]).all()
    assert "| DiM, drop 0.5 | 8 | 1 |" in capsys.readouterr().out
    study([*toy, "--pictures", "dim-50"])
    study([*toy, "--guidance", "dim-50"])
    with Image.open(tmp_path / "rows" / "dim-50.png") as picture:
        assert picture.size == (9 * 16, 16)  # a column a class, a row a checkpoint
    guided = results.read(tmp_path / "rows_guidance.jsonl")
    assert [(r["kind"], r["scale"]) for r in guided] == [
        (kind, scale) for kind, scales in guidance.SCALES.items() for scale in scales
    ]
    assert guided[0]["distance"] == rows[0]["distance"]  # scale 1 is no guidance
    assert len({r["distance"] for r in guided}) == len(guided)
    changed = Job(replace(arm_of("dim-50"), rate=1e-3), 0, 8)
    with pytest.raises(ConfigError, match=r"other settings for train\.optimizer\.lr"):
        run(tmp_path / "work", changed, small=True)
    chosen = [replace(job, steps=8) for job in wanted(["dim-50", "dim-50-tail"], [0, 1], 600)]
    assert [(job.arm.name, job.seed) for job in missing(chosen, rows)] == [
        ("dim-50", 1),
        ("dim-50-tail", 1),
    ]


def test_guidance_is_measured_at_a_scale_that_other_seeds_chose() -> None:
    seeds = ((5.0, 3.0, 4.0), (5.0, 3.5, 3.0), (5.0, 4.0, 1.0))
    rows = [
        {"arm": "dim-50", "seed": seed, "steps": 9, "kind": "route", "scale": s, "distance": d}
        for seed, found in enumerate(seeds)
        for s, d in zip((1.5, 2.0, 3.0), found, strict=True)
    ]
    # Seeds 1 and 2 choose 3.0 for seed 0, which alone would have chosen 2.0.
    assert guidance.chosen(rows, "dim-50", 9, "route") == {0: 4.0, 1: 3.0, 2: 4.0}
    only = rows[0] | {"scale": 5.0, "distance": 0.5}  # of one seed: nothing to compare it with
    assert guidance.chosen([*rows, only], "dim-50", 9, "route") == {0: 4.0, 1: 3.0, 2: 4.0}
    assert "| DiM, drop 0.5 | 9 |  |  | 3.67 ± 0.58 |" in guidance.table(rows)


def test_the_recorded_rows_are_whole() -> None:
    rows = results.read()
    keys = [results.key(row) for row in rows]
    assert len(set(keys)) == len(keys), "a run is recorded twice"
    for row in rows:
        arm_of(row["arm"])
        assert row["loss"] > 0 and row["commit"] and row["machine"] and row["flops"] > 0
    arms = curves.recorded(rows)
    for name in ("t64-dim-dense", "t64-dim-50", "t64-dit-dense", "t64-dit-50"):
        assert len(arms[name].loss.values) >= 3, f"{name} needs several seeds"
        assert np.isfinite(arms[name].curve("distance").values).all()
        assert (results.PICTURES / f"{name}.png").is_file()
    dim, dit = arms["t64-dim-dense"].loss, arms["t64-dit-dense"].loss
    assert abs(dim.flops[-1] / dit.flops[-1] - 1) < 0.02


def test_the_recorded_flops_are_those_of_the_present_code(tmp_path: Path) -> None:
    last = {row["arm"]: row for row in results.read()}
    for name in ("t64-dim-50", "t64-dit-dense", "t64-dim-50-tail"):
        row = last[name]
        job = Job(arm_of(row["arm"]), row["seed"], row["steps"])
        config = configure(tmp_path, SETTINGS[job.arm.setting], job)
        assert cost_of(config)["flops"] == pytest.approx(row["flops"], rel=1e-9), name


def test_a_row_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.jsonl"
    results.append(out, {"arm": "a", "seed": 0, "steps": 1})
    results.append(out, {"arm": "b\n", "seed": 0, "steps": 1})
    assert [json.loads(s)["arm"] for s in out.read_text().splitlines()] == ["a", "b\n"]
    assert results.read(out)[1]["arm"] == "b\n" and results.read(tmp_path / "none") == []
