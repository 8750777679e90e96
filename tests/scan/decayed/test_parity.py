"""Every backend that can run here against the recurrence in float64: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch

from tests.scan.decayed.cases import CASES, SSDCase, assert_ssd_matches, ssd_inputs
from tread_ssm.scan import ssd
from tread_ssm.scan.decayed.cpu import unavailable

needs_kernels = pytest.mark.skipif(
    unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="CPU kernels were not built",
)
NARROW = (torch.float32, torch.bfloat16, torch.float16)
SUPPORTED = [
    *(pytest.param("cpu", dtype, marks=needs_kernels) for dtype in NARROW),
    *(("matmul", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
    *(("reference", dtype) for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.mark.parametrize(("backend", "dtype"), SUPPORTED)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ssd(case, backend, dtype):
    assert_ssd_matches(case, dtype, backend)


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernels), "matmul"])
def test_no_square_of_the_length_is_kept_for_the_backward(backend):
    case = SSDCase("long", batch=1, length=1024, heads=4)
    inputs = {k: None if v is None else v.requires_grad_() for k, v in
              ssd_inputs(case, torch.float32).items()}  # fmt: skip
    kept = {}

    def count(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        y = ssd(**inputs, backend=backend)
    arguments = sum(x.numel() for x in inputs.values() if x is not None)
    states = -(-case.length // 64) * case.heads * case.states * 16
    assert 0 < sum(kept.values()) <= arguments + states < case.length**2 * case.heads / 10
    y.sum().backward()
