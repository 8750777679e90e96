"""Training with a map at the route's end: checkpoints, exports, dense steps, two processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import losses, run, tiny
from tread_ssm.config.run import RunConfig
from tread_ssm.config.strict import dump
from tread_ssm.pretrained import load_export
from tread_ssm.routing import Route, RouteSchedule
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
KEY = "fuse.0-2.of_end.weight"


def fused(
    out: Path,
    *,
    tail: float = 0.0,
    rejoin: str = "fuse",
    path_drop: float = 0.0,
    seed: int = 0,
    **options: object,
) -> RunConfig:
    config = replace(tiny(out, **options), seed=seed)
    routes = (Route(0, -1, rejoin=rejoin, path_drop=path_drop),)
    schedule = RouteSchedule(dense_tail=tail)
    return replace(config, routing=replace(config.routing, routes=routes, schedule=schedule))


def test_a_run_makes_the_maps_of_its_routes_and_learns_them(tmp_path: Path) -> None:
    config = fused(tmp_path)
    assert config.model.fuse == ((0, 2),)
    rows = run(config)
    plain = run(fused(tmp_path / "start", rejoin="start"))
    assert torch.equal(losses(rows)[0, 0], losses(plain)[0, 0])  # the loss of step 1
    assert not torch.equal(losses(rows)[2], losses(plain)[2])
    model, described = load_export(config.folder.path)
    assert described.model.fuse == ((0, 2),)
    assert bool((model.state_dict()[KEY] != 0).any())


@pytest.mark.parametrize(("tail", "path_drop"), [(0.5, 0.0), (1.0, 0.0), (0.0, 0.7)])
def test_steps_that_leave_parameters_out_resume_bit_for_bit(
    tmp_path: Path, tail: float, path_drop: float
) -> None:
    """A tail of 1: the mask token never gets a gradient, so the optimiser has no state for it.
    Dropped paths: nor have the blocks of the route after the first steps."""
    options: dict[str, Any] = {"tail": tail, "path_drop": path_drop, "seed": 3}
    whole = fused(tmp_path / "whole", **options, save_every=1, retain=6)
    rows = run(whole)
    assert [r["kept_loss"] is None for r in rows][:2] == [path_drop > 0] * 2
    assert any(r["kept_loss"] is not None for r in rows)
    again = replace(whole, out=str(tmp_path / "again"))
    shutil.copytree(whole.folder.path, again.folder.path)
    for step in (2, 3, 4, 5, 6):
        shutil.rmtree(again.folder.checkpoint(step))
    (again.folder.path / "ema.safetensors").unlink()
    run(again)
    a, b = (load_file(c.folder.path / "ema.safetensors") for c in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert bool((a[KEY] != 0).any()), "dense steps train the map"
    assert bool((a["fuse.0-2.mask_token"] != 0).any()) == (tail < 1)


@pytest.mark.slow
def test_two_processes_train_as_one_although_steps_leave_parameters_out(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"tail": 0.4, "path_drop": 0.7, "seed": 3, "micro_batch": 1}
    one, two = (fused(tmp_path / name, **options) for name in ("one", "two"))
    skipped = [r["kept_loss"] is None for r in run(one)]
    assert any(skipped) and not all(skipped)
    file = tmp_path / "two.yaml"
    file.write_text(dump(two))
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    done = subprocess.run(
        [sys.executable, *launch, "scripts/train.py", "--config", str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (losses(read_metrics(c.folder.metrics)) for c in (one, two))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
