"""The Triton kernels compile for GPUs that are not here, and stay inside their registers."""

from __future__ import annotations

import pytest

from tests.scan.processes import compiled_kernels

pytest.importorskip("triton")

MOST_REGISTERS = {"forward": 128, "backward": 255, "conv": 208}
MOST_INSTRUCTIONS = {"forward": 20, "backward": 55}
"""Per state-step at N = 16."""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_without_spills(capability: int) -> None:
    kernels = compiled_kernels("selective/compile_triton.py", capability)
    assert len(kernels) >= 10
    for kernel in kernels:
        # N = 64 leaves two registers over; 16 states, what networks use, and the rest leave none
        assert kernel["spilled"] <= (16 if " 64 " in kernel["name"] else 0), kernel
        assert 0 < kernel["registers"] <= MOST_REGISTERS[kernel["name"].split()[0]], kernel
        kind, state = kernel["name"].split()[:2]
        if kind in MOST_INSTRUCTIONS and state == "16":
            assert 5 < kernel["instructions"] <= MOST_INSTRUCTIONS[kind], kernel
