"""The Triton kernels compile for GPUs that are not here, and stay inside their registers."""

from __future__ import annotations

import pytest

from tests.scan.processes import compiled_kernels

pytest.importorskip("triton")

SHARED_MEMORY = 99 * 1024
"""Bytes that a program may have on every GPU from compute capability 8.0 on."""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_and_stay_in_registers(capability: int) -> None:
    kernels = compiled_kernels("decayed/compile_decayed.py", capability)
    assert len(kernels) == 32
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert 0 < kernel["registers"] <= 255, kernel
        assert 0 < kernel["shared"] <= SHARED_MEMORY, kernel
