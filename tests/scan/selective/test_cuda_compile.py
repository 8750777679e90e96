"""The CUDA kernels compile for GPUs that are not here, and stay inside their registers."""

from __future__ import annotations

import pytest

from tests.scan.processes import compiled_kernels
from tread_ssm.scan.selective import cuda, nvrtc

pytest.importorskip("triton")  # for its disassembler
try:
    nvrtc.library()
except OSError as error:
    pytest.skip(str(error), allow_module_level=True)

MOST_REGISTERS = {"scan_forward": 128, "scan_backward": 255}
MOST_SPILLED = {80: 0, 90: 48, 100: 256}
"""Bytes a thread of backward on each GPU; forward spills nothing."""
MOST_INSTRUCTIONS = {"scan_forward": 9, "scan_backward": 35}
"""Per state-step at N = 16."""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile(capability: int) -> None:
    kernels = compiled_kernels("selective/compile_cuda.py", capability)
    assert len(kernels) == 12
    for needs in kernels:
        kernel = needs["kernel"]
        assert 0 < needs["registers"] <= MOST_REGISTERS[kernel], needs
        most = MOST_SPILLED[capability] if kernel == "scan_backward" else 0
        assert needs["spilled"] <= most, needs
        if "instructions" in needs:
            assert 5 < needs["instructions"] <= MOST_INSTRUCTIONS[kernel], needs


def test_a_gpu_gets_the_code_of_the_nearest_lower_one_of_its_generation() -> None:
    assert [nvrtc.architecture(c) for c in (80, 90, 100)] == [80, 90, 100]
    assert nvrtc.architecture(109) in (100, 103)
    assert nvrtc.architecture(999) is None


def test_three_blocks_of_backward_fit_a_multiprocessor() -> None:
    tile = cuda.CHUNK * (2 * cuda.STATES + 2) * 4
    slots = (cuda.CHUNK // cuda.PART + 1) * cuda.THREADS * cuda.STATES * 4
    reserved = 1024  # by the system, for every block
    assert 3 * (tile + slots + reserved) <= 228 * 1024
    assert cuda.CHUNK % cuda.PART == 0
