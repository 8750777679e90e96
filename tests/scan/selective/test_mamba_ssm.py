"""The mamba-ssm adapter.

With a GPU and the packages, the shared case table runs through the real kernels. Without them,
what this package adds (gather, scatter, layouts, the two rewritings of a gap, differentiation) is
tested around autograd functions of the same documented meaning, made from the reference.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tests.scan.selective.cases import (
    CONV_CASES,
    SCAN_CASES,
    ConvCase,
    ScanCase,
    assert_close_to_reference,
    assert_conv_matches,
    assert_scan_matches,
    conv_inputs,
    scan_inputs,
)
from tread_ssm.scan import causal_conv, selective_scan
from tread_ssm.scan.inputs import ConvInputs, ScanInputs
from tread_ssm.scan.selective import mamba_ssm as backend
from tread_ssm.scan.selective import reference

CUDA = torch.device("cuda")
MISSING = backend.unavailable(CUDA, torch.float32) if torch.cuda.is_available() else "no GPU"
real = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class PlainScan(torch.autograd.Function):
    """u, delta, z (B, D, L), A (D, N), B, C (B, N, L) -> (B, D, L)."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        inputs = [swap(x) for x in (u, delta, A, B, C, D, z, delta_bias)]
        ctx.save_for_backward(*inputs)
        ctx.delta_softplus = delta_softplus
        y, _ = reference.scan_forward(ScanInputs(*inputs, None, None, delta_softplus))
        return swap(y)

    @staticmethod
    def backward(ctx, grad_y):
        inputs = ScanInputs(*ctx.saved_tensors, None, None, ctx.delta_softplus)
        grads = reference.scan_backward(swap(grad_y), inputs, torch.empty(0))
        return (*map(swap, grads), None)


class PlainConv(torch.autograd.Function):
    """x (B, D, L), weight (D, W) -> (B, D, L)."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        ctx.save_for_backward(swap(x), weight, bias)
        ctx.activation = activation == "silu"
        inputs = ConvInputs(swap(x), weight, bias, None, None, ctx.activation)
        return swap(reference.conv_forward(inputs))

    @staticmethod
    def backward(ctx, grad_y):
        inputs = ConvInputs(*ctx.saved_tensors, None, None, ctx.activation)
        return (*map(swap, reference.conv_backward(swap(grad_y), inputs)), None)


def swap(x):
    """(B, D, L) <-> (B, L, D); anything else as it is."""
    return x.transpose(1, 2).contiguous() if x is not None and x.ndim == 3 else x


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    return PlainScan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def plain_conv(x, weight, bias=None, activation=None):
    return PlainConv.apply(x, weight, bias, activation)


@pytest.fixture
def plain_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = plain_scan
    conv = ModuleType("causal_conv1d")
    conv.causal_conv1d_fn = plain_conv
    for module in (ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops"), interface, conv):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backend, "unavailable", lambda device, dtype: None)


@pytest.mark.usefixtures("plain_packages")
@pytest.mark.parametrize("case", [c for c in SCAN_CASES if c.length < 100], ids=str)
def test_scan_around_plain_functions(case: ScanCase) -> None:
    inputs = scan_inputs(case, torch.float32)
    assert_close_to_reference(selective_scan, inputs, "mamba_ssm", 1e-5)


@pytest.mark.usefixtures("plain_packages")
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv_around_plain_functions(case: ConvCase) -> None:
    inputs = conv_inputs(case, torch.float32)
    assert_close_to_reference(causal_conv, inputs, "mamba_ssm", 1e-5)


def test_says_why_it_cannot_run() -> None:
    assert "cpu" in str(backend.unavailable(torch.device("cpu"), torch.float32))
    assert "float64" in str(backend.unavailable(CUDA, torch.float64))


@real
@pytest.mark.gpu
@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_scan(case: ScanCase) -> None:
    assert_scan_matches(case, torch.float32, "mamba_ssm", "cuda")


@real
@pytest.mark.gpu
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_conv(case: ConvCase) -> None:
    assert_conv_matches(case, torch.float32, "mamba_ssm", "cuda")
