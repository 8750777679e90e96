"""What is logged, beyond what the tests of the loop see of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tread_ssm.config.run import TrainConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.training.checkpoints.checkpoint import Progress
from tread_ssm.training.logs.log import Log, TrainingError
from tread_ssm.training.step import logged


def log(folder: Path, precision: str) -> Log:
    train = TrainConfig(steps=3, batch_size=2, precision=precision)  # type: ignore[arg-type]
    return Log(train, RunFolder(folder), Accelerator(cpu=True), Progress(0, 0.0, []), logged(()))


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def test_a_step_that_fp16_skips_leaves_valid_json(tmp_path: Path) -> None:
    lines = log(tmp_path, "fp16")
    for norm in (2.0, math.inf, 4.0):
        lines.add(torch.tensor([1.0, 1.0, math.nan, norm]))
    lines.write(3, 1e-4)
    lines.close()
    row = json.loads(RunFolder(tmp_path).metrics.read_text(), parse_constant=refuse)
    assert row["grad_norm"] == 3.0
    assert row["routed_loss"] is None


def test_with_other_precisions_such_a_step_ends_the_run(tmp_path: Path) -> None:
    lines = log(tmp_path, "bf16")
    lines.add(torch.tensor([1.0, 1.0, math.nan, math.inf]))
    with pytest.raises(TrainingError, match="grad_norm became inf at step 1"):
        lines.write(1, 1e-4)
    lines.close()
