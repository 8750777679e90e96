"""FSDP2 in two real processes on the CPU: the run of one process, and its checkpoints go both ways.

accelerate uses FSDP2 on GPUs only; the worker makes it do so on the CPU, through gloo.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tread_ssm.config.check import check
from tread_ssm.config.run import RoutingConfig, RunConfig, SampleConfig, TrainConfig
from tread_ssm.config.strict import dump
from tread_ssm.data import EmojiData
from tread_ssm.diffusion import SRA2, Contrastive, Dispersive, Flow
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiMConfig
from tread_ssm.routing import Route, RouteSchedule
from tread_ssm.training.logs.metrics import read_metrics
from tread_ssm.training.loop import train
from tread_ssm.training.optimizer import AdamWConfig, MuonConfig
from tread_ssm.training.sharding import fsdp_plugin

ROOT = Path(__file__).parents[2]
WORKER = '''
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tread_ssm.models import DiMConfig
from tread_ssm.training import loop
from tread_ssm.config.check import check
from tread_ssm.config.run import load_config
from tread_ssm.training.averages.ema import Ema, ramped
from tread_ssm.pretrained import load_export
from tread_ssm.report.measure import step_times
from tread_ssm.training.sharding import fill, fsdp_plugin

plain = loop._accelerator


def sharded(config):
    accelerator = plain(config)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = fsdp_plugin()
    check_average(config.model)
    return accelerator


def check_average(config):
    """A sharded model's average is the whole model's, to the bit, and so is what it computes."""
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(config.build())
    a, b = models
    for block in b.blocks:
        fully_shard(block)
    fully_shard(b)
    assert all(isinstance(p, DTensor) for p in b.parameters())
    averages = Ema(a, ramped(0.9)), Ema(b, ramped(0.9))
    for step in range(3):
        with torch.no_grad():
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                p.add_(torch.randn_like(p), alpha=0.1)
                fill(q, p)
        for average in averages:
            average.update(step)
    same_states(*(e.state() for e in averages))
    assert averages[1].state(gather=False) == {}
    x, level, labels = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 9])

    def same_outputs():
        with torch.no_grad():
            p, q = a(x, level, labels), b(x, level, labels)
        assert torch.equal(p, q)
        return p

    outside = same_outputs()
    with averages[0].applied(), averages[1].applied():
        assert not torch.equal(same_outputs(), outside)
    assert torch.equal(same_outputs(), outside)
    state = averages[0].state()
    averages[1].update(7)
    averages[1].load(state)
    same_states(averages[1].state(), state)


def same_states(state, other):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert not isinstance(tensor, DTensor)
        assert torch.equal(tensor, other[name]), name


loop._accelerator = sharded
Accelerator.end_training = lambda self: None  # the processes stay together for the next run
for path in sys.argv[1:]:
    config = load_config(path)
    loop.train(config, check(config))
    if dist.get_rank() == 0:  # a report measures steps of a model of its own, in one process
        whole = load_export(config.folder.path)[0]
        assert step_times(config, check(config), whole, seconds=0, most=3).share > 0
    AcceleratorState._reset_state(reset_partial_state=True)
'''


def tiny(out: Path, name: str, **options: object) -> RunConfig:
    train_options: dict[str, object] = {"steps": 6, "batch_size": 4, "log_every": 1}
    train_options |= {"optimizer": AdamWConfig(lr=1e-3)}
    train_options |= {"save_every": 3, "micro_batch": 1, "checkpoint_gradients": True}
    return RunConfig(
        name=name,
        out=str(out),
        data=EmojiData(size=8),
        model=DiMConfig(image_size=8, channels=3, n_classes=9, dim=16, depth=3, pads=1),
        objective=Flow(),
        # The last two steps are dense, and leave the map's mask token without a gradient.
        routing=RoutingConfig(
            routes=(Route(0, 2, rejoin="fuse"),), schedule=RouteSchedule(dense_tail=0.4)
        ),
        train=TrainConfig(**(train_options | options)),  # type: ignore[arg-type]
        sample=SampleConfig(every=2, per_class=1, steps=2, classes=2),
    )


def run(config: RunConfig) -> None:
    assert train(config, check(config)) is None
    AcceleratorState._reset_state(reset_partial_state=True)


def run_sharded(*configs: RunConfig) -> None:
    """One after the other in the same two processes, to spare the tests their start."""
    out = Path(configs[0].out)
    worker = out / "worker.py"
    worker.write_text(WORKER)
    files = [out / f"{config.name}.yaml" for config in configs]
    for config, file in zip(configs, files, strict=True):
        file.write_text(dump(config))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launcher, str(worker), *map(str, files)],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr.replace("tread_ssm scans on cpu", "")


def from_the_middle(config: RunConfig, name: str) -> RunConfig:
    """The same run as it stood at its first checkpoint."""
    other = replace(config, name=name)
    shutil.copytree(config.folder.path, other.folder.path)
    shutil.rmtree(other.folder.checkpoint(6))
    return other


def agree(a: RunConfig, b: RunConfig, rtol: float = 1e-4) -> None:
    rows = [read_metrics(c.folder.metrics) for c in (a, b)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] == list(range(1, 7))
    for one, other in zip(*rows, strict=True):
        for key in (k for k in one if k.endswith("loss") or k == "grad_norm"):
            found, wanted = one[key] or 0.0, other[key] or 0.0  # None where nothing is routed
            assert found == pytest.approx(wanted, rel=rtol), (key, one["step"])
    weights = [load_file(c.folder.path / "ema.safetensors") for c in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=10 * rtol, atol=10 * rtol)


def first_loss(config: RunConfig) -> float:
    return float(read_metrics(config.folder.metrics)[0]["loss"])


def test_sharded_and_whole_runs_agree_and_go_on_from_each_other(tmp_path: Path) -> None:
    losses = (SRA2(block=0, layers=2), Dispersive(block=1, group=2), Contrastive())
    whole, sharded = (
        replace(tiny(tmp_path, n, micro_batch=2), auxiliary=losses) for n in ("whole", "sharded")
    )
    half, sharded_half = (tiny(tmp_path, n, precision="bf16") for n in ("half", "sharded-half"))
    muon, sharded_muon = (
        tiny(tmp_path, n, optimizer=MuonConfig(lr=1e-3)) for n in ("muon", "sharded-muon")
    )
    run(whole)
    run(half)
    run(muon)
    spread = from_the_middle(whole, "whole-then-sharded")
    run_sharded(sharded, spread, sharded_half, sharded_muon)
    gathered = from_the_middle(sharded, "sharded-then-whole")
    run(gathered)

    for other in (sharded, spread, gathered):
        agree(whole, other)
        grids = [sorted(p.name for p in c.folder.samples.iterdir()) for c in (whole, other)]
        assert grids[0] == grids[1]
    agree(half, sharded_half, rtol=5e-3)
    agree(muon, sharded_muon, rtol=5e-3)  # its iteration computes in bfloat16
    assert first_loss(sharded_half) != pytest.approx(first_loss(sharded), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp2.yaml"),
        ({"FSDP_VERSION": "1"}, "fsdp_version to 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.checkpoint_gradients"),
    ],
)
def test_what_cannot_work_is_refused(
    settings: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fsdp_plugin() is None
    for key, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | settings).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=text):
        fsdp_plugin()
