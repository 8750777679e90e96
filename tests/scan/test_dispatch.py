"""Choice of backend, warnings, and the messages for bad arguments."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

from tests.scan.selective.cases import ConvCase, ScanCase, conv_inputs, scan_inputs
from tread_ssm.scan import BACKENDS, causal_conv, choose_backend, dispatch, selective_scan
from tread_ssm.scan.selective import cpu

built = cpu.unavailable(torch.device("cpu"), torch.float32) is None
CASE = ScanCase("c", length=12, dim=4, state=3, visits=7)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_warned", set())


@pytest.mark.skipif(not built, reason="CPU kernels were not built")
def test_the_compiled_kernels_are_the_choice_on_a_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(None, "cpu", torch.float32) == "cpu"
        assert choose_backend(None, "cpu", torch.float64) == "chunked"


def test_argument_before_environment_before_choice(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    assert choose_backend(None, "cpu", torch.float32) == "reference"
    assert choose_backend("chunked", "cpu", torch.float32) == "chunked"


def test_a_slow_fallback_says_so_once_and_why(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)
    with pytest.warns(UserWarning, match=r"slow backend 'chunked'.*not built"):
        assert choose_backend(None, "cpu", torch.float32) == "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(None, "cpu", torch.float32) == "chunked"


def test_an_unknown_backend_is_refused_with_the_list(monkeypatch):
    with pytest.raises(
        ValueError, match=r"backend='mamba': there are triton, mamba_ssm, cuda, cpu"
    ):
        selective_scan(**scan_inputs(CASE, torch.float32), backend="mamba")
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"TREAD_SSM_BACKEND='fast'"):
        selective_scan(**scan_inputs(CASE, torch.float32))


def test_a_backend_that_cannot_run_is_refused_with_its_reason():
    with pytest.raises(
        ValueError, match=r"backend='cpu' cannot run torch.float64 on cpu: .*float32"
    ):
        selective_scan(**scan_inputs(CASE, torch.float64), backend="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_asking_for_a_reason_never_raises(backend):
    reason = dispatch.unavailable(backend, torch.device("cuda"), torch.float32)
    assert reason is None or isinstance(reason, str)


def test_importing_the_package_does_not_import_kernels_or_their_compilers():
    code = (
        "import sys, tread_ssm.scan; bad = [m for m in sys.modules if m.split('.')[0] in "
        "('mamba_ssm', 'causal_conv1d') or m.startswith('tread_ssm.scan.selective.')];"
        "print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BAD_SCANS = [
    ("u", lambda t: t[0], r"u has shape \(12, 4\); expected \(B, L, D\)"),
    ("u", lambda t: t.long(), r"u is torch.int64; a real floating dtype"),
    ("delta", lambda t: t[:, :5], r"delta has shape \(2, 5, 4\).*\(2, 12, 4\) like u"),
    ("A", lambda t: t[:3], r"A has shape \(3, 3\); expected \(D, N\) with D = 4"),
    ("A", lambda t: t.expand(4, 3).repeat(1, 30), r"N = 90 states; 1 to 64"),
    ("B", lambda t: t[..., :2], r"B has shape \(2, 12, 2\); expected \(B, L, N\) = \(2, 12, 3\)"),
    ("C", lambda t: t[:1], r"C has shape \(1, 12, 3\)"),
    ("D", lambda t: t[:1], r"D has shape \(1,\); expected \(D,\) with D = 4"),
    ("z", lambda t: t[..., :1], r"z has shape \(2, 12, 1\)"),
    ("delta_bias", lambda t: t.unsqueeze(0), r"delta_bias has shape \(1, 4\)"),
    ("order", lambda t: t.float(), r"order is torch.float32; an integer"),
    ("order", lambda t: t.expand(3, -1), r"order has shape \(3, 7\).*B = 2, K = 7"),
    ("order", lambda t: torch.arange(13), r"K = 13 visits; 1 to L = 12"),
    ("order", lambda t: t[:0], r"K = 0 visits"),
    ("order", lambda t: t + 12, r"positions run from 1\d to 2\d, but must lie in 0\.\.11"),
    ("gap", lambda t: torch.zeros(5, dtype=torch.int64), r"gap has shape \(5,\).*K = 7"),
    ("gap", lambda t: torch.zeros(7), r"gap is torch.float32; an integer"),
    ("z", lambda t: t.to("meta"), r"z is on meta, but the input on cpu"),
    ("order", lambda t: t.to("meta"), r"order is on meta, but the input on cpu"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_SCANS)
def test_bad_scan_arguments_are_named(name, spoil, message):
    x = scan_inputs(CASE, torch.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan(**{**x, name: spoil(x[name])})


BAD_CONVS = [
    ("x", lambda t: t[0], r"causal_conv: x has shape \(63, 20\)"),
    ("weight", lambda t: t[:, :1], r"weight has 1 taps; W must be 2, 3 or 4"),
    ("weight", lambda t: t[:7], r"weight has shape \(7, 4\); expected \(D, W\) with D = 20"),
    ("bias", lambda t: t[:7], r"bias has shape \(7,\)"),
    ("order", lambda t: torch.zeros(3, 7, dtype=torch.int64), r"order has shape \(3, 7\)"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_CONVS)
def test_bad_convolution_arguments_are_named(name, spoil, message):
    x = conv_inputs(ConvCase("c"), torch.float32)
    with pytest.raises((ValueError, TypeError), match=message):
        causal_conv(**{**x, name: spoil(x[name])})
