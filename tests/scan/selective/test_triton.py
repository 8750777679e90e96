"""The Triton kernels against the float64 reference.

Without a GPU they run under Triton's interpreter: see tests/scan/processes.py. The cases are cut to
few visits, and to one sample where the order is shared; marked `slow`, the whole table runs as it
stands.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.scan.processes import first_process, gpu, interpreted, run_interpreted
from tests.scan.selective.cases import (
    CONV_CASES,
    LONG_SCAN_CASES,
    SCAN_CASES,
    ConvCase,
    ScanCase,
    assert_conv_matches,
    assert_scan_matches,
    conv_inputs,
    run_with_gradients,
    scan_inputs,
    with_gradients,
)
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.inputs import ConvInputs, ScanInputs
from tread_ssm.scan.selective import triton as backend

pytest.importorskip("triton")

ROUNDED = ("plain", "subset_per_sample", "gap_shared", "dt_tiny")
"""Scan cases that also run in 16 bits."""

CROSSING = ("plain", "order_shared", "subset_per_sample", "gap_shared", "gap_per_sample")
"""Scan cases that keep more than one chunk of visits."""

CUT = tuple(c for c in SCAN_CASES if c.length < 200 or c.dt != "usual")
"""Without the cases that differ from others by their length only."""

ODD = (
    ScanCase("large", batch=4, length=500, dim=200, visits=333, per_sample=True),
    ScanCase("large_gap", batch=3, length=366, dim=384, visits=238, per_sample=True, gap=True),
    ScanCase("column", batch=2, length=1024, dim=2048, visits=1024),
    ScanCase("state_33", batch=2, length=100, dim=77, state=33),
)
"""Larger scans for the real kernels."""


def cut(case: ScanCase) -> ScanCase:
    """The case with few visits, and where visits are its point with one full chunk and a bit."""
    visits = 35 if case.name in CROSSING or case.dt != "usual" else 9
    return replace(
        case,
        batch=case.batch if case.per_sample else 1,
        length=min(case.length, visits if case.visits is None else visits + 6),
        visits=None if case.visits is None else min(case.visits, visits),
    )


@first_process
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("case", CUT, ids=str)
def test_scan(case: ScanCase) -> None:
    assert_scan_matches(cut(case), torch.float32, "triton")


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in SCAN_CASES if c.name in ROUNDED], ids=str)
def test_scan_in_16_bits(case: ScanCase, dtype: torch.dtype) -> None:
    assert_scan_matches(replace(cut(case), length=17, visits=case.visits and 11), dtype, "triton")


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_whole_scan(case: ScanCase) -> None:
    assert_scan_matches(case, torch.float32, "triton")


@interpreted
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv(case: ConvCase) -> None:
    case = replace(case, length=min(case.length, 70))
    assert_conv_matches(case, torch.float32, "triton")


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CONV_CASES[:2], ids=str)
def test_conv_in_16_bits(case: ConvCase, dtype: torch.dtype) -> None:
    assert_conv_matches(case, dtype, "triton")


@interpreted
def test_non_contiguous_inputs_give_the_same_bits() -> None:
    inputs = scan_inputs(ScanCase("small", batch=1, length=5, dim=7, state=3), torch.float32)
    strided = {
        k: v.transpose(-1, -2).contiguous().transpose(-1, -2)
        if isinstance(v, torch.Tensor) and v.ndim > 1
        else v
        for k, v in inputs.items()
    }
    want = run_with_gradients(selective_scan, inputs, backend="triton")
    got = run_with_gradients(selective_scan, strided, backend="triton")
    for name in want:
        assert torch.equal(got[name], want[name]), name


@interpreted
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z"])
def test_nan_in_nan_out(name: str) -> None:
    inputs = scan_inputs(ScanCase("small", batch=1, length=5, dim=7, state=3), torch.float32)
    inputs[name][0, 2, 1] = torch.nan
    nan = selective_scan(**inputs, backend="triton").isnan()
    want = selective_scan(**inputs, backend="reference").isnan()
    assert want.any() and torch.equal(nan, want)


@interpreted
def test_nan_in_nan_out_of_conv() -> None:
    inputs = conv_inputs(ConvCase("small", batch=1, length=9, dim=5), torch.float32)
    inputs["x"][0, 2, 1] = torch.nan
    nan = causal_conv(**inputs, backend="triton").isnan()
    want = causal_conv(**inputs, backend="reference").isnan()
    assert want.any() and torch.equal(nan, want)


@interpreted
def test_operators_pass_opcheck() -> None:
    check_operators("cpu", ScanCase("small", batch=1, length=3, dim=3, state=2, visits=2))


def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    cpu = torch.device("cpu")
    assert "GPU" in str(backend.unavailable(cpu, torch.float32))
    assert "mps" in str(backend.unavailable(torch.device("mps"), torch.float32))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.unavailable(cpu, torch.bfloat16) is None
    assert "float64" in str(backend.unavailable(cpu, torch.float64))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SCAN_CASES + LONG_SCAN_CASES + ODD, ids=str)
def test_scan_on_a_gpu(case: ScanCase, dtype: torch.dtype) -> None:
    assert_scan_matches(case, dtype, "triton", "cuda")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case",
    (*CONV_CASES, ConvCase("large", 3, 1230, 2048, 3, visits=700, per_sample=True, gap=True)),
    ids=str,
)
def test_conv_on_a_gpu(case: ConvCase, dtype: torch.dtype) -> None:
    assert_conv_matches(case, dtype, "triton", "cuda")


@gpu
@pytest.mark.gpu
def test_equal_bits_on_every_run_on_a_gpu() -> None:
    inputs = scan_inputs(replace(ODD[1], batch=16), torch.bfloat16, "cuda")
    first = run_with_gradients(selective_scan, inputs, backend="triton")
    for _ in range(5):
        again = run_with_gradients(selective_scan, inputs, backend="triton")
        for name in first:
            assert torch.equal(first[name], again[name]), name


@gpu
@pytest.mark.gpu
def test_operators_pass_opcheck_on_a_gpu() -> None:
    check_operators("cuda", ScanCase("plain", visits=31, per_sample=True, gap=True))


@gpu
@pytest.mark.gpu
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    # the last sample of u starts past element 2^31; bf16, so 4.3 GB a tensor
    batch, length, dim = 257, 4096, 2048
    free, _ = torch.cuda.mem_get_info()
    if free < 30e9:
        pytest.skip("needs 30 GB of GPU memory")
    inputs = scan_inputs(ScanCase("one", batch=1, length=length, dim=dim, gate=False),
                         torch.bfloat16, "cuda")  # fmt: skip
    want = selective_scan(**inputs, backend="triton")
    many = {
        k: v.expand(batch, -1, -1).contiguous()
        if k in ("u", "delta", "B", "C") and isinstance(v, torch.Tensor)
        else v
        for k, v in inputs.items()
    }
    with torch.no_grad():
        got = selective_scan(**many, backend="triton")
    assert torch.equal(got[-1], want[0])


def check_operators(device: str, case: ScanCase) -> None:
    """torch.library.opcheck on both forward operators and, through autograd, the backward ones."""
    scan = ScanInputs(**with_gradients(scan_inputs(case, torch.float32, device)))
    torch.library.opcheck(torch.ops.tread_ssm.scan_forward, (*scan, "triton"))
    small = conv_inputs(ConvCase("small", batch=1, length=3, dim=3), torch.float32, device)
    conv = ConvInputs(**with_gradients(small))
    torch.library.opcheck(torch.ops.tread_ssm.conv_forward, (*conv, "triton"))
