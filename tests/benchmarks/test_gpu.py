"""Every part of benchmarks/gpu.py at small sizes on the CPU, and how it runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

COMMAND = [sys.executable, str(gpu.ROOT / "benchmarks" / "gpu.py")]
MEASURED = {"operation": "ms", "model": "images_per_s", "step s": "both s"}


def run(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(gpu.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("name", [n for n in gpu.parts(()) if not n.startswith("tests-")])
def test_every_part_measures_something_or_says_why_not(name: str) -> None:
    rows = list(gpu.parts((name,))[name]("cpu", gpu.TOY))
    assert rows
    for row in rows:
        (value,) = (row.get(key) for first, key in MEASURED.items() if first in row)
        assert row.get("note") or (isinstance(value, float) and value > 0), row


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert "no GPU here; nothing was measured" in run()


def test_results_are_written_as_they_come_each_part_in_its_own_process(tmp_path: Path) -> None:
    names = ["tests-test_mamba_ssm", "scan-mamba_ssm", "attention-torch"]
    said = run("--toy", "--parts", *names, "--out", str(tmp_path / "gpu"))
    assert [line.partition(":")[0] for line in said.splitlines()] == names
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [len(report["parts"][n]["rows"]) for n in names] == [1, 1, 2]
    assert "passed" in report["parts"][names[0]]["rows"][0]["result"]
    text = (tmp_path / "gpu.md").read_text()
    assert "## attention" in text and "mamba-ssm" in text and "went wrong" not in text


def test_a_part_that_fails_or_finds_no_time_costs_the_others_nothing(tmp_path: Path) -> None:
    rows, problem = gpu.run_part("no-such-part", "cpu", True, 100)
    assert rows == [] and "no parts ['no-such-part']; there are tests-" in problem
    rows, problem = gpu.run_part("model-dim_l", "cpu", True, 1)
    assert rows == [] and problem == "stopped: its 1 s were over"
    said = run("--toy", "--minutes", "0", "--parts", "ssd-cpu", "--out", str(tmp_path / "gpu"))
    assert "left out: the 0 minutes were over" in said
    assert "ssd-cpu: left out" in (tmp_path / "gpu.md").read_text()
