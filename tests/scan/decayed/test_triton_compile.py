"""The Triton kernels compile for GPUs that are not here, and stay inside their registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = 99 * 1024
"""Bytes that a program may have on every GPU from compute capability 8.0 on."""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_and_stay_in_registers(capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests/scan/decayed/compile_decayed.py"), str(capability)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) == 32
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert 0 < kernel["registers"] <= 255, kernel
        assert 0 < kernel["shared"] <= SHARED_MEMORY, kernel
