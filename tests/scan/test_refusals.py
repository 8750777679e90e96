"""What the operations refuse: transforms they have no rule for, and calls of the operators with
arguments that do not fit, which must never reach a kernel."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import (
    ConvCase,
    ScanCase,
    conv_inputs,
    run_with_gradients,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, selective_scan, ssd
from tread_ssm.scan.inputs import BothInputs, ConvInputs, GateInputs, ScanInputs, SSDInputs
from tread_ssm.scan.ops import BOTH, OPERATIONS
from tread_ssm.scan.selective import cpu

SCAN_CASE = ScanCase("c", length=12, dim=4, state=3, visits=7, gap=True)
CONV_CASE = ConvCase("c", length=12, dim=5, visits=7, gap=True)
SSD_CASE = SSDCase(
    "c", length=12, groups=2, heads=6, states=5, channels=3, visits=7, gap=True, terms=True
)
CALLS = [
    pytest.param(selective_scan, "u", scan_inputs(SCAN_CASE, torch.float32), id="selective_scan"),
    pytest.param(causal_conv, "x", conv_inputs(CONV_CASE, torch.float32), id="causal_conv"),
    pytest.param(ssd, "v", ssd_inputs(SSD_CASE, torch.float32), id="ssd"),
]
BACKENDS = ["reference"]
if cpu.library() is not None:
    BACKENDS.append("cpu")


@pytest.mark.parametrize(("function", "first", "inputs"), CALLS)
@pytest.mark.parametrize("transform", ["jvp", "vmap", "grad", "jacfwd", "jacrev"])
def test_transforms_of_torch_func_are_refused(function, first, inputs, transform):
    def call(x):
        return function(**{**inputs, first: x}).sum()

    x = inputs[first]
    with pytest.raises(NotImplementedError, match=rf"{function.__name__}: torch.func \(vmap, jvp"):
        if transform == "jvp":
            torch.func.jvp(call, (x,), (x,))
        elif transform == "vmap":
            torch.func.vmap(call)(x.expand(3, *x.shape))
        else:
            getattr(torch.func, transform)(call)(x)


@pytest.mark.parametrize(("function", "first", "inputs"), CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tangent_is_refused_and_not_lost(function, first, inputs, backend):
    for name, x in inputs.items():
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            continue
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match=r"forward-mode.*use backward\(\)"):
                function(**{**inputs, name: dual}, backend=backend)
            function(**inputs, backend=backend)  # without a tangent it runs there, too


@pytest.mark.parametrize(("function", "first", "inputs"), CALLS)
def test_several_gradients_at_once_are_those_one_by_one(function, first, inputs):
    x = inputs[first].clone().requires_grad_()
    y = function(**{**inputs, first: x})
    grads = torch.randn(3, *y.shape)
    (got,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    want = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in grads])
    assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("largest", [2**31, 2**62, 2**63 - 1])
def test_the_largest_gaps_do_not_overflow(backend, largest):
    """A gap that long forgets everything before it, as one of a million does."""
    for function, inputs in (
        (selective_scan, scan_inputs(SCAN_CASE, torch.float32)),
        (causal_conv, conv_inputs(CONV_CASE, torch.float32)),
        (ssd, ssd_inputs(SSD_CASE, torch.float32)),
    ):
        long = inputs["gap"].clone()
        long[3] = largest
        million = torch.where(long == largest, 10**6, long)
        got = run_with_gradients(function, {**inputs, "gap": long}, backend=backend)
        want = run_with_gradients(function, {**inputs, "gap": million}, backend=backend)
        for name in want:
            assert_close(got[name], want[name], msg=name)


# The operators themselves --------------------------------------------------------------------

SPOILT = [
    (ScanInputs, "u", lambda t: t[0]),
    (ScanInputs, "u", lambda t: t[:, :0]),
    (ScanInputs, "u", lambda t: t.long()),
    (ScanInputs, "delta", lambda t: t[:, :5]),
    (ScanInputs, "delta", lambda t: t.double()),
    (ScanInputs, "A", lambda t: t[:3]),
    (ScanInputs, "A", lambda t: t.to(torch.bfloat16)),
    (ScanInputs, "A", lambda t: t.repeat(1, 30)),
    (ScanInputs, "B", lambda t: t[..., :2]),
    (ScanInputs, "C", lambda t: t[:1]),
    (ScanInputs, "D", lambda t: t[:1]),
    (ScanInputs, "D", lambda t: t.double()),
    (ScanInputs, "z", lambda t: t[..., :1]),
    (ScanInputs, "delta_bias", lambda t: t[:2]),
    (ScanInputs, "order", lambda t: t[:0]),
    (ScanInputs, "order", lambda t: t.int()),
    (ScanInputs, "order", lambda t: t + 12),
    (ScanInputs, "order", lambda t: t * 0),
    (ScanInputs, "order", lambda t: t.expand(3, -1)),
    (ScanInputs, "order", lambda t: torch.arange(13)),
    (ScanInputs, "gap", lambda t: t[:3]),
    (ScanInputs, "gap", lambda t: t.float()),
    (ScanInputs, "gap", lambda t: t - 5),
    (ScanInputs, "gap", lambda t: torch.tensor(1)),
    (ConvInputs, "x", lambda t: t[..., :3]),
    (ConvInputs, "weight", lambda t: t.repeat(1, 3)[:, :9]),
    (ConvInputs, "weight", lambda t: t[:, :1]),
    (ConvInputs, "weight", lambda t: t.double()),
    (ConvInputs, "bias", lambda t: t[:2]),
    (ConvInputs, "order", lambda t: t + 12),
    (ConvInputs, "gap", lambda t: t[:3]),
    (ConvInputs, "gap", lambda t: t.expand(3, -1)),
    (SSDInputs, "q", lambda t: t[..., :4]),
    (SSDInputs, "q", lambda t: t[:, :, :1]),
    (SSDInputs, "k", lambda t: t[:, :11]),
    (SSDInputs, "k", lambda t: t.double()),
    (SSDInputs, "v", lambda t: t[:, :, :5]),
    (SSDInputs, "v", lambda t: t[:1]),
    (SSDInputs, "log_decay", lambda t: t[:, :, :5]),
    (SSDInputs, "log_decay", lambda t: t.to(torch.bfloat16)),
    (SSDInputs, "scale", lambda t: t[:, :, :5]),
    (SSDInputs, "diagonal", lambda t: t.double()),
    (SSDInputs, "order", lambda t: t + 12),
    (SSDInputs, "order", lambda t: t * 0),
    (SSDInputs, "gap", lambda t: t[:3]),
    (SSDInputs, "gap", lambda t: t - 5),
    (GateInputs, "y", lambda t: t[0]),
    (GateInputs, "z", lambda t: t[:, :, :, :2]),
    (GateInputs, "weight", lambda t: t.double()),
]


REFUSED = r"^(selective_scan|causal_conv|ssd|gated_norm|order|gap): "


def operators(kind):
    """Forward and backward operator, good inputs, and y, of a kind of inputs."""
    if kind is ScanInputs:
        good = ScanInputs(**scan_inputs(SCAN_CASE, torch.float32))
        return torch.ops.tread_ssm.scan_forward, torch.ops.tread_ssm.scan_backward, good
    if kind is SSDInputs:
        good = SSDInputs(**ssd_inputs(SSD_CASE, torch.float32))
        return torch.ops.tread_ssm.ssd_forward, torch.ops.tread_ssm.ssd_backward, good
    if kind is GateInputs:
        good = GateInputs(*torch.randn(2, 2, 12, 4, 5), torch.rand(4, 5))
        return torch.ops.tread_ssm.gate_forward, torch.ops.tread_ssm.gate_backward, good
    if kind is BothInputs:
        there = ssd_inputs(SSD_CASE, torch.float32)
        there.pop("diagonal")
        good = BothInputs(**there, **{f"back_{n}": None for n in there if n != "v"})
        return torch.ops.tread_ssm.both_forward, torch.ops.tread_ssm.both_backward, good
    good = ConvInputs(**conv_inputs(CONV_CASE, torch.float32))
    return torch.ops.tread_ssm.conv_forward, torch.ops.tread_ssm.conv_backward, good


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "name", "spoil"), SPOILT)
def test_operators_check_their_arguments(kind, name, spoil, backend):
    forward, backward, good = operators(kind)
    y, states = forward(*good, backend)
    bad = good._replace(**{name: spoil(getattr(good, name))})
    with pytest.raises((ValueError, TypeError), match=REFUSED):
        forward(*bad, backend)
    with pytest.raises((ValueError, TypeError), match=REFUSED):
        backward(torch.ones_like(y), *bad, states, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [ScanInputs, ConvInputs, SSDInputs, GateInputs])
def test_backward_checks_the_gradient_and_the_states(kind, backend):
    forward, backward, good = operators(kind)
    y, states = forward(*good, backend)
    longer = torch.zeros(states.numel() + 1)
    for bad in (y[:, :5], y.double(), y[0]):
        with pytest.raises(ValueError, match=r"grad_y is \(.*expected \(2, 12, "):
            backward(bad, *good, states, backend)
    for bad in (longer, states.double(), states.to("meta")):
        with pytest.raises(ValueError, match=r"states is \(.*expected \("):
            backward(y, *good, bad, backend)


@pytest.mark.parametrize("operation", (*OPERATIONS, BOTH), ids=lambda o: o.name)
def test_operators_refuse_backends_they_do_not_have(operation):
    forward, _, good = operators(operation.inputs)
    with pytest.raises(ValueError, match=rf"{operation.name}: no backend 'fast'; there are"):
        forward(*good, "fast")


@pytest.mark.skipif(cpu.library() is None, reason="CPU kernels were not built")
@pytest.mark.parametrize("kind", [ScanInputs, ConvInputs, SSDInputs, GateInputs])
def test_the_compiled_kernels_refuse_a_dtype_that_they_do_not_read(kind):
    forward, _, good = operators(kind)
    wide = kind(*(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in good))
    with pytest.raises(ValueError, match=r"cannot run torch.float64 on cpu: .*float32"):
        forward(*wide, "cpu")
