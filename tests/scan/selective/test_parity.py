"""Every backend that can run here against the reference in float64: outputs and all gradients.

The Triton kernels have their own file, which sets TRITON_INTERPRET before it imports them.
"""

from __future__ import annotations

import pytest
import torch

from tests.scan.selective.cases import (
    CONV_CASES,
    LONG_SCAN_CASES,
    SCAN_CASES,
    assert_conv_matches,
    assert_scan_matches,
)
from tread_ssm.scan.selective.cpu import unavailable

needs_kernels = pytest.mark.skipif(
    unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="CPU kernels were not built",
)
NARROW = (torch.float32, torch.bfloat16, torch.float16)
SUPPORTED = [
    *(pytest.param("cpu", dtype, marks=needs_kernels) for dtype in NARROW),
    *(("chunked", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
    *(("reference", dtype) for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_scan(case, backend, dtype):
    assert_scan_matches(case, dtype, backend)


@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
@pytest.mark.parametrize("case", LONG_SCAN_CASES, ids=str)
def test_long_scan(case, backend, dtype):
    assert_scan_matches(case, dtype, backend)


@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_convolution(case, backend, dtype):
    assert_conv_matches(case, dtype, backend)
