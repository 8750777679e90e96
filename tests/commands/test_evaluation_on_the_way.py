"""The training command with evaluations, on one process and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CONFIG = """
name: run
data: {kind: emoji, size: 8}
model: {kind: dim, image_size: 8, channels: 3, n_classes: 9, dim: 16, depth: 3, pads: 1}
objective: {kind: flow}
routing: {routes: [{start: 0, stop: 2}]}
train:
  {steps: 4, batch_size: 8, optimizer: {kind: adamw, lr: 1e-3}, save_every: 4, ema_decay: 0.5,
   threads: 1, report: true}
sample: {every: 0, steps: 2}
eval: {every: 2, num: 70, batch: 16, metrics: [fid, kid], extractor: emoji}
"""


def train(folder: Path, processes: int, *overrides: str) -> Path:
    config = folder / "run.yaml"
    config.write_text(CONFIG + f"out: {folder}\n")
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    words = [*(launcher if processes > 1 else ()), "scripts/train.py", "--config", str(config)]
    words += overrides
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_one_and_two_processes_log_the_same_metrics(tmp_path: Path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
    one, two = (train(tmp_path / str(n), n) for n in (1, 2))
    rows, others = read_metrics(one / "evals.jsonl"), read_metrics(two / "evals.jsonl")
    assert [r["step"] for r in rows] == [r["step"] for r in others] == [2, 4]
    for row, other in zip(rows, others, strict=True):
        assert row["count"] == other["count"] == 70  # five batches: not shared evenly
        assert other["fid"] == pytest.approx(row["fid"], rel=1e-5)
        assert other["kid"] == pytest.approx(row["kid"], rel=1e-5)
    assert (two / "evals" / "step-0000004.png").is_file()
    report = (one / "report.md").read_text()
    assert "## Evaluations" in report
    assert f"| 4 | {rows[1]['fid']:.4g} | {rows[1]['kid']:.4g} |" in report


def test_fewer_batches_than_processes(tmp_path: Path) -> None:
    run = train(tmp_path, 2, "eval.batch=70", "train.steps=2", "train.report=false")
    (row,) = read_metrics(run / "evals.jsonl")
    assert row["count"] == 70
    assert (run / "evals" / "step-0000002.png").is_file()
