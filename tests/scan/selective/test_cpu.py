"""What only the compiled kernels can get wrong: threads, instruction sets, layouts, NaN."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from torch.testing import assert_close

from tests.scan.selective.cases import (
    ConvCase,
    ScanCase,
    assert_conv_matches,
    assert_scan_matches,
    conv_inputs,
    run_with_gradients,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, compiled, selective_scan
from tread_ssm.scan.inputs import ScanInputs
from tread_ssm.scan.selective import cpu

pytestmark = pytest.mark.skipif(
    cpu.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="CPU kernels were not built",
)
CASE = ScanCase("c", batch=3, length=130, dim=40, state=10, visits=100, per_sample=True, gap=True)
CONV = ConvCase("c", batch=3, length=130, dim=200, visits=100, per_sample=True, gap=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_right_and_repeatable_for_any_number_of_threads(threads, count):
    threads(count)
    assert_scan_matches(CASE, torch.float32, "cpu")
    assert_conv_matches(CONV, torch.float32, "cpu")
    for function, x in (
        (selective_scan, scan_inputs(CASE, torch.float32)),
        (causal_conv, conv_inputs(CONV, torch.float32)),
    ):
        first, second = (run_with_gradients(function, x, backend="cpu") for _ in range(2))
        for name in first:
            assert torch.equal(first[name], second[name]), name


def test_own_threads_where_no_openmp_runtime_is_loaded(threads, monkeypatch):
    threads(3)
    monkeypatch.setattr(compiled, "openmp_entry", lambda: None)
    assert_scan_matches(CASE, torch.float32, "cpu")
    assert_conv_matches(CONV, torch.float32, "cpu")


def test_it_shares_torchs_thread_pool():
    """The OpenMP entry is found: with a second pool the two would spin on the same cores."""
    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch without OpenMP, or not Linux")
    assert compiled.openmp_entry() is not None


@pytest.mark.parametrize("level", compiled.instruction_sets())
def test_every_instruction_set_that_this_processor_has(level, monkeypatch):
    kernels = compiled.load(level, cpu.fits)
    assert kernels is not None, f"kernels for {level} were not built"
    monkeypatch.setattr(cpu, "library", lambda: (level, kernels))
    for dtype in (torch.float32, torch.bfloat16):
        assert_scan_matches(CASE, dtype, "cpu")
        assert_conv_matches(CONV, dtype, "cpu")


@pytest.mark.parametrize("level", compiled.instruction_sets())
@pytest.mark.parametrize("dim, state", [(6, 3), (16, 8), (33, 10)])
def test_no_output_holds_memory_that_nobody_wrote(level, dim, state, monkeypatch):
    kernels = compiled.load(level, cpu.fits)
    monkeypatch.setattr(cpu, "library", lambda: (level, kernels))
    x = scan_inputs(ScanCase("padded", length=130, dim=dim, state=state), torch.float32)
    y, states = torch.ops.tread_ssm.scan_forward(*ScanInputs(**x), "cpu")
    assert y.isfinite().all() and states.isfinite().all()


@pytest.mark.parametrize("level", compiled.instruction_sets())
def test_the_exponential(level, monkeypatch):
    kernels = compiled.load(level, cpu.fits)
    assert kernels is not None
    monkeypatch.setattr(cpu, "library", lambda: (level, kernels))
    x = torch.linspace(-125, 127, 1 << 16)
    error = cpu.exp2(x, torch.empty_like(x)).double() / torch.exp2(x.double()) - 1
    assert error.abs().max() < 2e-7
    assert abs(error.mean()) < 1e-8  # no bias: a decay is multiplied thousands of times
    inf, nan = float("inf"), float("nan")
    ends = torch.tensor([0.0, -0.0, -128.0, -1e4, 129.0, 1e4, nan, 1.0] * 2)
    want = torch.tensor([1.0, 1.0, 0.0, 0.0, inf, inf, nan, 2.0] * 2)
    assert_close(cpu.exp2(ends, torch.empty_like(ends)), want, rtol=0, atol=1e-37, equal_nan=True)


def test_loading_it_leaves_subnormals_alone():
    selective_scan(**scan_inputs(CASE, torch.float32), backend="cpu")
    tiny = torch.full((1000,), 1e-40)
    assert bool((tiny * 0.5 > 0).all())


def strided(t):
    """The same values, not contiguous."""
    wide = torch.empty(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


@pytest.mark.parametrize(
    "change", [strided, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)]
)
def test_inputs_need_not_be_contiguous(change):
    x = scan_inputs(CASE, torch.float32)
    moved = {
        k: change(v) if isinstance(v, torch.Tensor) and v.ndim > 1 else v for k, v in x.items()
    }
    assert not moved["u"].is_contiguous()
    assert torch.equal(selective_scan(**moved, backend="cpu"), selective_scan(**x, backend="cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_reads_a_slice_of_wider_rows_in_place(dtype):
    x = conv_inputs(CONV, dtype)
    wide = torch.full((CONV.batch, CONV.length, CONV.dim + 30), torch.nan, dtype=dtype)
    part = wide[..., 11 : 11 + CONV.dim].copy_(x["x"])
    assert compiled.native_rows(part) is part
    assert compiled.native_rows(part[..., ::2]).is_contiguous()
    y = torch.ops.tread_ssm.conv_forward(*x.values(), "cpu")
    moved = (part, *list(x.values())[1:])
    assert torch.equal(torch.ops.tread_ssm.conv_forward(*moved, "cpu")[0], y[0])
    want = torch.ops.tread_ssm.conv_backward(y[0], *x.values(), y[1], "cpu")
    got = torch.ops.tread_ssm.conv_backward(y[0], *moved, y[1], "cpu")
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) and a.is_contiguous()


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_explosion_stays_visible(name, value):
    x = scan_inputs(ScanCase("c", batch=1, length=70, dim=20), torch.float32)
    x[name].view(-1)[0] = value
    got = selective_scan(**x, backend="cpu")
    want = selective_scan(**x, backend="reference")
    assert torch.equal(got.isfinite(), want.isfinite())
    assert not got.isfinite().all()


def test_a_growing_state_overflows_to_infinity():
    x = scan_inputs(ScanCase("c", batch=1, length=70, dim=20, gate=False), torch.float32)
    x["A"] = -x["A"] * 100
    assert not selective_scan(**x, backend="cpu").isfinite().all()


def test_nan_in_the_convolution_reaches_its_readers_only():
    x = conv_inputs(ConvCase("c", batch=1, length=20, dim=5), torch.float32)
    x["x"][0, 7, 2] = float("nan")
    bad = causal_conv(**x, backend="cpu").isnan().nonzero().tolist()
    assert bad == [[0, t, 2] for t in (7, 8, 9, 10)]


@pytest.mark.parametrize("order", [[0, 1, 130], [-1, 0, 1], [0, 1, 1]])
def test_bad_positions_are_refused_before_memory_is_touched(order):
    order = torch.tensor(order)
    x, c = scan_inputs(CASE, torch.float32), conv_inputs(CONV, torch.float32)
    with pytest.raises(ValueError, match=r"order: (positions run from|a position is visited)"):
        selective_scan(**{**x, "order": order, "gap": None}, backend="cpu")
    with pytest.raises(ValueError, match=r"order: (positions run from|a position is visited)"):
        causal_conv(**{**c, "order": order, "gap": None}, backend="cpu")


def test_integer_types_of_order_and_gap_do_not_matter():
    x, c = scan_inputs(CASE, torch.float32), conv_inputs(CONV, torch.float32)
    for function, inputs in ((selective_scan, x), (causal_conv, c)):
        want = function(**inputs, backend="cpu")
        small = {**inputs, "order": inputs["order"].int(), "gap": inputs["gap"].short()}
        assert torch.equal(function(**small, backend="cpu"), want)


def test_the_order_given_as_rows_or_as_one_row_is_the_same():
    x = scan_inputs(ScanCase("c", visits=31, gap=True), torch.float32)
    got = selective_scan(
        **{**x, "order": x["order"].expand(2, -1), "gap": x["gap"].expand(2, -1)}, backend="cpu"
    )
    assert_close(got, selective_scan(**x, backend="cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(dtype):
    inputs = scan_inputs(CASE, torch.float32)
    leaves = [x for x in inputs.values() if torch.is_tensor(x) and x.is_floating_point()]
    for x in leaves:
        x.requires_grad_()

    def gradients():
        return torch.autograd.grad(selective_scan(**inputs, backend="cpu").sum(), leaves)

    expected = gradients()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        again = gradients()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference", "chunked"])
def test_negative_gaps_are_refused(backend):
    gap = torch.tensor([0, 1, -3, 0])
    x, weight = torch.randn(1, 4, 8), torch.randn(8, 3)
    with pytest.raises(ValueError, match="gap: it holds -3"):
        causal_conv(x, weight, gap=gap, backend=backend)
    A, B = -torch.ones(8, 2), torch.randn(1, 4, 2)
    with pytest.raises(ValueError, match="gap: it holds -3"):
        selective_scan(x, x, A, B, B, gap=gap, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference", "chunked"])
def test_narrow_gaps_do_not_overflow(backend):
    x, A, B = torch.randn(1, 4, 8), -torch.ones(8, 2), torch.randn(1, 4, 2)
    gap = torch.tensor([0, 1, 127, 0])
    narrow = selective_scan(x, x, A, B, B, gap=gap.to(torch.int8), backend=backend)
    assert_close(narrow, selective_scan(x, x, A, B, B, gap=gap, backend=backend))


def test_a_library_from_other_sources_is_refused(monkeypatch):
    found = cpu.library()
    assert found is not None and cpu.fits(found[1])
    monkeypatch.setattr(cpu, "CHUNK", cpu.CHUNK // 2)
    assert not cpu.fits(found[1])
    assert compiled.load(found[0], cpu.fits) is None
    monkeypatch.undo()
    assert not cpu.fits(ctypes.CDLL(None))  # no such symbol


@pytest.mark.parametrize("backend", ["cpu", "reference", "chunked"])
def test_results_are_contiguous_whatever_the_strides(backend):
    order = torch.randperm(6)
    x = torch.randn(6, 2, 8).transpose(0, 1)
    y = causal_conv(x, torch.randn(8, 3), order=order, backend=backend)
    A, B = -torch.ones(8, 2), torch.randn(2, 6, 2)
    scanned = selective_scan(x, x, A, B, B, order=order, backend=backend)
    assert y.is_contiguous() and scanned.is_contiguous()
