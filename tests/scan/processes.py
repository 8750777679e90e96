"""What the tests of GPU kernels run in other processes: Triton's interpreter, and compilers.

Triton decides when it is first imported whether it interprets, and other tests may have imported it
by then. So a file's `test_under_the_interpreter` runs the same file in a second pytest; there the
tests marked `interpreted` run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in test_under_the_interpreter")
first_process = pytest.mark.skipif(INTERPRETED, reason="this is the second pytest")
gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")


def run_interpreted(file: str) -> None:
    """Run a file's tests under Triton's interpreter; they must pass."""
    arguments = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", file]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def compiled_kernels(script: str, capability: int) -> list[dict[str, Any]]:
    """What each kernel needs on a GPU of this compute capability, as a script finds it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests/scan" / script), str(capability)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]
