"""Two directions in one product against two passes of the recurrence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import (
    TOLERANCE,
    in_float64,
    poisoned_memory,
    relative_rms,
    run_with_gradients,
)
from tread_ssm.scan import Direction, dispatch, ssd, ssd_both_ways
from tread_ssm.scan.decayed.masked import LONGEST
from tread_ssm.scan.ops import FLOPS_PER_SSD_STEP

CASES = (
    SSDCase("plain"),
    SSDCase("length_1", length=1),
    SSDCase("length_64", length=64, heads=4, groups=2),
    SSDCase("length_65", length=65, visits=65),
    SSDCase("length_238", length=238, visits=238, per_sample=True, batch=1),
    SSDCase("terms", length=40, heads=6, groups=3, visits=40, per_sample=True, terms=True),
    SSDCase("subset", length=40, visits=23, per_sample=True, terms=True),
    SSDCase("one_visit", length=40, visits=1, terms=True),
    SSDCase("gap", length=40, visits=31, per_sample=True, gap=True),
    SSDCase("near_0", length=50, decay="near_0", terms=True),
    SSDCase("mixed", length=50, decay="mixed", gap=True),
)
OWN = ("q", "k", "log_decay", "scale")


def both_inputs(case, dtype, own):
    """Arguments of `both`: with `own`, the way back has other q, k, log decays and scales."""
    x = ssd_inputs(case, dtype)
    other = ssd_inputs(case, dtype, seed=1)
    order = torch.arange(case.length) if x["order"] is None else x["order"]
    x["back_order"] = order.flip(-1)
    x["back_gap"] = other["gap"]
    x |= {f"back_{name}": other[name] for name in OWN if own}
    return x


def both(v, diagonal, backend=None, **x):
    there = Direction(*(x[name] for name in Direction._fields))
    back = Direction(*(x.get(f"back_{n}", x[n]) for n in Direction._fields))
    return ssd_both_ways(v, there, back, diagonal, backend=backend)


def two_passes(v, diagonal, backend=None, **x):
    there = {name: x[name] for name in Direction._fields}
    back = {name: x.get(f"back_{name}", x[name]) for name in Direction._fields}
    first = ssd(v=v, diagonal=diagonal, **there, backend=backend)
    return first + ssd(v=v, **back, backend=backend)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_product_equals_two_passes(case, dtype, own, monkeypatch):
    monkeypatch.setattr(dispatch, "LONGEST", 238)
    inputs = both_inputs(case, dtype, own)
    with poisoned_memory():
        got = run_with_gradients(both, inputs, backend="matmul")
    want = run_with_gradients(two_passes, in_float64(inputs), dtype, backend="reference")
    assert len(got) == 5 + 2 * case.terms + own * (3 + case.terms)
    for name in want:
        assert relative_rms(got[name], want[name]) < TOLERANCE[dtype], name
        assert got[name].dtype == inputs["v" if name == "y" else name].dtype, name


@pytest.mark.parametrize(
    ("backend", "length"), [("reference", 40), (None, 40), ("matmul", LONGEST + 1)]
)
def test_other_backends_and_longer_sequences_run_twice(backend, length):
    case = SSDCase("twice", length=length, visits=21, per_sample=True, terms=True)
    inputs = both_inputs(case, torch.float32, own=True)
    got, want = (run_with_gradients(f, inputs, backend=backend) for f in (both, two_passes))
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_one_graph_and_the_flops_of_two_passes():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both, fullgraph=True, backend=counter)
    case = replace(CASES[5], gap=True)
    for seed in range(3):
        inputs = both_inputs(case, torch.float32, own=False)
        inputs["v"] = inputs["v"] + seed
        got = run_with_gradients(compiled, inputs, backend="matmul")
        want = run_with_gradients(both, inputs, backend="matmul")
        for name in want:
            torch.testing.assert_close(got[name], want[name])
    assert counter.frame_count == 1
    with FlopCounterMode(display=False) as count:
        run_with_gradients(both, inputs, backend="matmul")
    steps = case.batch * case.visits * case.heads * case.states * case.channels
    assert count.get_total_flops() == 2 * steps * sum(FLOPS_PER_SSD_STEP.values())


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_opcheck(own):
    inputs = both_inputs(SSDCase("o", 2, 20, 2, 4, 3, 5, gap=True, terms=True), torch.float32, own)
    leaves = [
        x.requires_grad_() if x is not None and x.is_floating_point() else x
        for x in (inputs.get(name) for name in ARGUMENTS)
    ]
    torch.library.opcheck(torch.ops.tread_ssm.both_forward, (*leaves, "matmul"))


ARGUMENTS = ("q", "k", "v", *Direction._fields[2:], *(f"back_{n}" for n in Direction._fields))


def test_no_square_of_the_length_is_kept_for_the_backward():
    case = SSDCase("long", batch=1, length=LONGEST, heads=4)
    inputs = both_inputs(case, torch.float32, own=False)
    inputs = {k: v.requires_grad_() if v is not None and v.is_floating_point() else v
              for k, v in inputs.items()}  # fmt: skip
    kept = {}

    def count(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        both(**inputs, backend="matmul").sum().backward()
    assert 0 < sum(kept.values()) <= sum(x.numel() for x in inputs.values() if x is not None)


def test_a_scale_is_given_to_both_ways_or_to_neither():
    inputs = both_inputs(SSDCase("t", terms=True), torch.float32, own=False)
    with pytest.raises(ValueError, match="one way has a scale, the other has none"):
        both(**inputs, back_scale=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"back_q": None}, "give both q and k of the way back, or neither"),
        ({"scale": None}, "a scale of the way back needs one of the way there"),
        ({"back_log_decay": torch.zeros(2, 20, 3)}, r"back_log_decay has shape \(2, 20, 3\)"),
        ({"back_order": torch.arange(7)}, r"back_order has shape \(7,\).* K = 20"),
        ({"v": torch.zeros(2, 20, 3, 5)}, r"log_decay has shape"),
    ],
)
def test_the_operator_checks_its_arguments(change, message):
    x = both_inputs(SSDCase("o", 2, 20, 2, 4, 3, 5, terms=True), torch.float32, own=True) | change
    arguments = [x.get(name) for name in ARGUMENTS]
    with pytest.raises(ValueError, match=message):
        torch.ops.tread_ssm.both_forward(*arguments, "matmul")
    with pytest.raises(ValueError, match=message):
        torch.ops.tread_ssm.both_backward(x["v"], *arguments, torch.empty(0), "matmul")
