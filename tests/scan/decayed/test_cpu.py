"""What only the compiled kernels can get wrong: threads, instruction sets, layouts."""

from __future__ import annotations

import pytest
import torch

from tests.scan.decayed.cases import SSDCase, assert_ssd_matches, ssd_inputs
from tests.scan.selective.cases import run_with_gradients
from tread_ssm.scan import compiled, ssd
from tread_ssm.scan.decayed import cpu

pytestmark = pytest.mark.skipif(
    cpu.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="CPU kernels were not built",
)
CASE = SSDCase("c", 3, 170, 2, 10, 20, 18, visits=150, per_sample=True, gap=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_right_and_repeatable_for_any_number_of_threads(threads, count):
    threads(count)
    assert_ssd_matches(CASE, torch.float32, "cpu")
    x = ssd_inputs(CASE, torch.float32)
    first, second = (run_with_gradients(ssd, x, backend="cpu") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_own_threads_where_no_openmp_runtime_is_loaded(threads, monkeypatch):
    threads(3)
    monkeypatch.setattr(compiled, "openmp_entry", lambda: None)
    assert_ssd_matches(CASE, torch.float32, "cpu")


@pytest.mark.parametrize("level", compiled.instruction_sets())
@pytest.mark.parametrize("states, channels", [(3, 5), (20, 18), (64, 64), (33, 100)])
def test_every_instruction_set_that_this_processor_has(level, states, channels, monkeypatch):
    kernels = compiled.load(level, cpu.fits)
    assert kernels is not None, f"kernels for {level} were not built"
    monkeypatch.setattr(cpu, "library", lambda: (level, kernels))
    case = SSDCase("l", 2, 150, 2, 4, states, channels, visits=131, per_sample=True, gap=True)
    for dtype in (torch.float32, torch.bfloat16):
        assert_ssd_matches(case, dtype, "cpu")
    y, kept = torch.ops.tread_ssm.ssd_forward(*ssd_inputs(case, torch.float32).values(), "cpu")
    assert y.isfinite().all() and kept.isfinite().all()


def wider_rows(x):
    """The same values as a slice of rows that hold more."""
    wide = torch.full((*x.shape[:2], x[0, 0].numel() + 7), torch.nan, dtype=x.dtype)
    part = wide[:, :, 3 : 3 + x[0, 0].numel()].unflatten(2, x.shape[2:])
    return part.copy_(x)


@pytest.mark.parametrize(
    "change", [wider_rows, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)]
)
def test_slices_of_wider_rows_are_read_in_place(change):
    x = ssd_inputs(CASE, torch.float32)
    moved = {k: change(v) if k in ("q", "k", "v") else v for k, v in x.items()}
    in_place = change is wider_rows
    assert all((compiled.native_rows(moved[k]) is moved[k]) == in_place for k in ("q", "k", "v"))
    want = torch.ops.tread_ssm.ssd_forward(*x.values(), "cpu")
    got = torch.ops.tread_ssm.ssd_forward(*moved.values(), "cpu")
    assert torch.equal(got[0], want[0])
    grad_y = torch.randn(want[0].shape, generator=torch.Generator().manual_seed(0))
    backward = torch.ops.tread_ssm.ssd_backward
    expected = backward(grad_y, *x.values(), want[1], "cpu")
    for a, b in zip(
        backward(change(grad_y), *moved.values(), got[1], "cpu"), expected, strict=True
    ):
        assert torch.equal(a, b) and a.is_contiguous()


def test_kernels_of_other_sources_are_refused(monkeypatch):
    kernels = cpu.library()[1]
    assert cpu.fits(kernels)
    monkeypatch.setattr(cpu, "CHUNK", 32)
    assert not cpu.fits(kernels)
    assert not cpu.fits(object())
