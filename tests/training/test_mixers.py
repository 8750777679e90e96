"""Routed training with each mixer: what a run exports, and two processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.training.runs import losses, run, tiny
from tread_ssm.config.run import RunConfig
from tread_ssm.config.strict import dump
from tread_ssm.models import AttentionConfig, DiMConfig, Mamba2Config, Mamba3Config
from tread_ssm.pretrained import load_export
from tread_ssm.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
HEADS = {"d_state": 8, "head_dim": 8}
HYBRID = {"attention_every": 2, "attention": AttentionConfig(head_dim=8)}
MODELS = {
    "mamba2": {"mixer": Mamba2Config(**HEADS)},
    "mamba3": {"mixer": Mamba3Config(**HEADS)},
    "both_ways": {"mixer": Mamba3Config(**HEADS, bidirectional=True, own_backward=True)},
    "hybrid": {"mixer": Mamba2Config(**HEADS, gap_decay=True), **HYBRID},
}
WORKER = """
import os
import sys

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tread_ssm.config.check import check
from tread_ssm.config.run import load_config
from tread_ssm.training.loop import train

Accelerator.end_training = lambda self: None  # the processes stay together for the next run
for path in sys.argv[1:]:
    config = load_config(path)
    train(config, check(config))
    AcceleratorState._reset_state(reset_partial_state=True)
os._exit(0)  # as in tests/models/test_sharded.py
"""


def described(out: Path, name: str) -> RunConfig:
    config = replace(tiny(out, micro_batch=1), name=name)
    assert isinstance(config.model, DiMConfig)
    return replace(config, model=replace(config.model, **MODELS[name]))


@pytest.mark.slow
def test_two_processes_train_every_mixer_as_one_does(tmp_path: Path) -> None:
    ones = [described(tmp_path / "one", name) for name in MODELS]
    twos = [described(tmp_path / "two", name) for name in MODELS]
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    files = []
    for config in twos:
        files.append(tmp_path / f"{config.name}.yaml")
        files[-1].write_text(dump(config))
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    done = subprocess.run(
        [sys.executable, *launch, worker, *files],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(ones, twos, strict=True):
        a, b = losses(run(one)), losses(read_metrics(two.folder.metrics))
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=one.name)


@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_the_mixer_that_was_trained(name: str, tmp_path: Path) -> None:
    config = described(tmp_path, name)
    rows = run(config)
    assert all(row["routed_loss"] is not None for row in rows)
    model, again = load_export(config.folder.path)
    assert again.model == config.model
    weights = load_file(config.folder.path / "ema.safetensors")
    torch.manual_seed(config.seed)
    new = config.model.build().state_dict()
    assert weights.keys() == new.keys() == model.state_dict().keys()
    trained = [n for n in weights if not torch.equal(weights[n], new[n])]
    assert [n for n in weights if "mixer" in n and n not in trained] == []
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
