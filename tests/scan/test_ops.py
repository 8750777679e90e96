"""The operators: what torch.compile, autocast, checkpointing and FLOP counting see of them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.scan.selective.cases import (
    ConvCase,
    ScanCase,
    conv_inputs,
    in_float64,
    run_with_gradients,
    scan_inputs,
    with_gradients,
)
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.inputs import ConvInputs, ScanInputs
from tread_ssm.scan.ops import FLOPS_PER_STATE_STEP, FLOPS_PER_TAP
from tread_ssm.scan.selective.cpu import unavailable

SCAN = ScanCase("ops", length=20, dim=6, state=3, visits=13, per_sample=True, gap=True)
BARE = ScanCase("ops_bare", length=20, dim=6, state=3, skip=False, gate=False, bias=False)
CONV = ConvCase("ops", length=20, dim=6, visits=13, per_sample=True, gap=True)
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "cpu" and unavailable(torch.device("cpu"), torch.float32) is not None,
            reason="CPU kernels were not built",
        ),
    )
    for name in ("cpu", "chunked", "reference")
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [SCAN, BARE], ids=str)
def test_opcheck_of_the_scan(backend, case):
    inputs = with_gradients(scan_inputs(case, torch.float32))
    torch.library.opcheck(torch.ops.tread_ssm.scan_forward, (*ScanInputs(**inputs), backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_of_the_convolution(backend):
    inputs = with_gradients(conv_inputs(CONV, torch.float32))
    torch.library.opcheck(torch.ops.tread_ssm.conv_forward, (*ConvInputs(**inputs), backend))


def scan_then_conv(u, delta, A, B, C, D, weight, order):
    return causal_conv(selective_scan(u, delta, A, B, C, D, order=order), weight, order=order)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_graph_break_and_agrees(backend, monkeypatch):
    monkeypatch.setenv("TREAD_SSM_BACKEND", backend)
    torch._dynamo.reset()
    names = ("u", "delta", "A", "B", "C", "D")
    inputs = scan_inputs(SCAN, torch.float32)
    inputs = {name: inputs[name] for name in names} | {
        "weight": conv_inputs(CONV, torch.float32)["weight"],
        "order": inputs["order"],
    }
    compiled = torch.compile(scan_then_conv, fullgraph=True, backend="aot_eager")
    got, want = run_with_gradients(compiled, inputs), run_with_gradients(scan_then_conv, inputs)
    for name in want:
        assert_close(got[name], want[name])


def test_no_new_graph_for_a_new_order_of_the_same_length():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(scan_then_conv, fullgraph=True, backend=counter)
    for seed in range(3):
        inputs = scan_inputs(SCAN, torch.float32, seed=seed)
        arguments = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D")]
        compiled(*arguments, conv_inputs(CONV, torch.float32)["weight"], inputs["order"])
    assert counter.frame_count == 1


def test_activation_checkpointing_gives_the_same_gradients():
    inputs = scan_inputs(SCAN, torch.float32)

    def checkpointed(**kwargs):
        return checkpoint(selective_scan, *kwargs.values(), use_reentrant=False)

    got, want = run_with_gradients(checkpointed, inputs), run_with_gradients(selective_scan, inputs)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", [SCAN, BARE], ids=str)
def test_flops_follow_the_stated_convention(device, case):
    inputs = with_gradients(scan_inputs(case, torch.float32, device=device))
    with FlopCounterMode(display=False) as counter:
        selective_scan(**inputs).sum().backward()
    state_steps = case.batch * (case.visits or case.length) * case.dim * case.state
    assert counter.get_total_flops() == state_steps * sum(FLOPS_PER_STATE_STEP.values())

    conv = with_gradients(conv_inputs(CONV, torch.float32, device=device))
    with FlopCounterMode(display=False) as counter:
        causal_conv(**conv).sum().backward()
    taps = CONV.batch * CONV.visits * CONV.dim * CONV.width
    assert counter.get_total_flops() == taps * sum(FLOPS_PER_TAP.values())


def test_meta_inputs_give_meta_outputs_of_the_right_shape():
    inputs = scan_inputs(SCAN, torch.bfloat16, device="meta")
    y = selective_scan(**inputs)
    assert (y.shape, y.dtype, y.device.type) == (inputs["u"].shape, torch.bfloat16, "meta")


def test_autocast_leaves_dtypes_alone():
    inputs = scan_inputs(SCAN, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = run_with_gradients(selective_scan, inputs)
    want = run_with_gradients(selective_scan, inputs)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("u_dtype", [torch.float32, torch.bfloat16])
def test_mixed_dtypes_are_computed_in_the_wider_one(u_dtype):
    inputs = scan_inputs(SCAN, torch.bfloat16)
    inputs["u"] = inputs["u"].to(u_dtype)
    inputs["delta"] = inputs["delta"].float()
    got = run_with_gradients(selective_scan, inputs)
    wide = {k: v.float() if k in ("u", "B", "C", "z") else v for k, v in inputs.items()}
    want = run_with_gradients(selective_scan, wide, grad_dtype=u_dtype)
    assert got["y"].dtype == u_dtype
    for name in want:
        assert got[name].dtype == (u_dtype if name == "y" else inputs[name].dtype), name
        assert_close(got[name], want[name].to(got[name].dtype))


def test_only_requested_gradients_are_returned():
    inputs = scan_inputs(SCAN, torch.float32)
    inputs["u"].requires_grad_()
    selective_scan(**inputs).sum().backward()
    assert inputs["u"].grad is not None
    assert all(inputs[k].grad is None for k in ("delta", "A", "B", "C", "D", "z"))


def test_second_derivatives_are_refused():
    inputs = in_float64(scan_inputs(SCAN, torch.float32))
    inputs["u"].requires_grad_()
    (first,) = torch.autograd.grad(selective_scan(**inputs).sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()
