"""Every mixer's parameters spread over two processes by FSDP2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from tread_ssm.models import AttentionConfig, DiMConfig, DiTConfig, Mamba2Config, Mamba3Config
from tread_ssm.models import ZigMambaConfig
from tread_ssm.routing import Route, RoutePlan

dist.init_process_group("gloo")
shape = {"image_size": 8, "channels": 3, "n_classes": 9, "dim": 16, "depth": 5}
heads = {"d_state": 8, "head_dim": 32}  # one head: a parameter that one of the two holds whole
hybrid = {"attention_every": 2, "attention": AttentionConfig(head_dim=8)}
for config in (
    DiMConfig(**shape, **hybrid, mixer=Mamba2Config(**heads)),
    ZigMambaConfig(**shape, mixer=Mamba3Config(**heads, norm=True, bidirectional=True)),
    DiTConfig(**shape, heads=2, qk_norm=True, rope=True, value_residual=True, mlp="swiglu"),
):
    models = []
    for _ in range(2):
        torch.manual_seed(1)
        model = config.build()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        models.append(model)
    whole, sharded = models
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    batch = torch.randn(2, 3, 8, 8), torch.rand(2) * 1000, torch.tensor([0, 9])
    draw = RoutePlan((Route(1, 4),), 5).draw(2, (4, 4), torch.Generator().manual_seed(2))
    for routing in ((), draw):
        for m in models:
            m.zero_grad()
        outs = [m(*batch, routing=routing, checkpoint=True) for m in models]
        assert torch.equal(*outs)
        for out in outs:
            out.square().mean().backward()
        for (name, p), q in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=1e-4, atol=1e-6, msg=name)
dist.destroy_process_group()
# A thread of gloo may still hold tensors of the last collective, and ends the process with SIGABRT
# if it waits for Python's lock when the interpreter shuts down. So that does not happen here.
os._exit(0)
"""


@pytest.mark.slow
def test_sharded_mixers_compute_what_whole_ones_do(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            worker,
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
