"""The Triton kernels against the recurrence in float64.

Without a GPU they run under Triton's interpreter: see tests/scan/processes.py. There the cases are
cut to few visits and small states.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.scan.decayed.cases import CASES, SSDCase, assert_ssd_matches, ssd_inputs
from tests.scan.processes import first_process, gpu, interpreted, run_interpreted
from tests.scan.selective.cases import run_with_gradients
from tread_ssm.scan import ssd
from tread_ssm.scan.decayed import triton as backend

pytest.importorskip("triton")

ROUNDED = ("plain", "subset_per_sample", "gap_per_sample", "decay_near_0", "decay_mixed")
"""Cases that also run in 16 bits."""
LARGE = (
    SSDCase("large", 4, 500, 1, 24, 64, 64, visits=333, per_sample=True),
    SSDCase("large_gap", 3, 366, 2, 12, 128, 64, visits=238, per_sample=True, gap=True),
    SSDCase("odd", 2, 1230, 1, 6, 48, 40),
)
"""For the real kernels."""


def cut(case: SSDCase) -> SSDCase:
    """At most one sample where samples share the order, and three chunks."""
    return replace(
        case,
        batch=case.batch if case.per_sample else 1,
        length=min(case.length, 140),
        visits=case.visits and min(case.visits, 130),
        states=min(case.states, 40),
        channels=min(case.channels, 33),
    )


@first_process
def test_under_the_interpreter() -> None:
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ssd(case: SSDCase) -> None:
    assert_ssd_matches(cut(case), torch.float32, "triton")


@interpreted
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)],  # to bfloat16 the interpreter truncates
    ids=str,
)
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ROUNDED], ids=str)
def test_ssd_in_16_bits(case: SSDCase, dtype: torch.dtype, tolerance: float) -> None:
    assert_ssd_matches(cut(case), dtype, "triton", tolerance=tolerance)


@interpreted
def test_ranges_of_several_heads_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "PROGRAMS", 1)
    case = SSDCase("ranges", 1, 140, 2, 12, 5, 3, visits=129, per_sample=True, gap=True)
    assert backend._ranges(2, 6) == 2  # of three heads each
    assert_ssd_matches(case, torch.float32, "triton")


@interpreted
def test_slices_of_wider_rows_give_the_same_bits() -> None:
    inputs = ssd_inputs(SSDCase("small", 2, 9, 2, 4, 5, 3), torch.float32)
    wide = dict(inputs)
    for name in ("q", "k", "v"):
        rows = torch.cat([inputs[name].flatten(2), torch.full((2, 9, 7), torch.nan)], 2)
        wide[name] = rows[:, :, :-7].unflatten(2, inputs[name].shape[2:])
    assert torch.equal(ssd(**wide, backend="triton"), ssd(**inputs, backend="triton"))


@interpreted
def test_operators_pass_opcheck() -> None:
    check_operators("cpu", SSDCase("small", 1, 70, 1, 2, 3, 2, visits=66))


def test_heads_are_cut_into_equal_ranges() -> None:
    for programs in (1, 3, 100, 1000, 5000):
        for heads in (1, 6, 7, 32):
            ranges = backend._ranges(programs, heads)
            assert heads % ranges == 0 and heads // ranges <= backend.LAUNCHES
            assert programs * ranges >= backend.PROGRAMS or ranges == heads or programs >= 1024


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_ssd_on_a_gpu(case: SSDCase, dtype: torch.dtype) -> None:
    assert_ssd_matches(case, dtype, "triton", "cuda")


@gpu
@pytest.mark.gpu
def test_equal_bits_on_every_run_on_a_gpu() -> None:
    inputs = ssd_inputs(replace(LARGE[1], batch=16), torch.bfloat16, "cuda")
    first = run_with_gradients(ssd, inputs, backend="triton")
    for _ in range(5):
        again = run_with_gradients(ssd, inputs, backend="triton")
        for name in first:
            assert torch.equal(first[name], again[name]), name


@gpu
@pytest.mark.gpu
def test_one_compilation_for_all_lengths_on_a_gpu() -> None:
    from tread_ssm.scan.decayed import triton_kernels as kernels

    names = ("forward_kernel", "after_kernel", "across_kernel", "inside_kernel")
    counts = []
    for visits in (129, 130, 144, 183, 238):
        case = SSDCase("c", 2, 256, 1, 4, 64, 64, visits=visits, per_sample=True)
        run_with_gradients(ssd, ssd_inputs(case, torch.bfloat16, "cuda"), backend="triton")
        caches = [getattr(kernels, name).device_caches for name in names]
        counts.append([sum(len(c[0]) for c in cache.values()) for cache in caches])
    assert all(count == counts[0] for count in counts), counts


@gpu
@pytest.mark.gpu
def test_operators_pass_opcheck_on_a_gpu() -> None:
    check_operators("cuda", SSDCase("plain", visits=31, per_sample=True, gap=True))


def check_operators(device: str, case: SSDCase) -> None:
    """torch.library.opcheck on the forward operator and, through autograd, the backward one."""
    arguments = [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in ssd_inputs(case, torch.float32, device).values()
    ]
    torch.library.opcheck(torch.ops.tread_ssm.ssd_forward, (*arguments, "triton"))
