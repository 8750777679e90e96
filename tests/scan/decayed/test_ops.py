"""The operator and its arguments: what torch.compile, checkpointing and FLOP counting see, choice
of backend, messages."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tread_ssm
from tests.scan.decayed.cases import SSDCase, ssd_inputs
from tests.scan.selective.cases import run_with_gradients
from tread_ssm.scan import dispatch, ssd
from tread_ssm.scan.decayed.cpu import unavailable
from tread_ssm.scan.ops import FLOPS_PER_SSD_STEP, SSD

built = unavailable(torch.device("cpu"), torch.float32) is None
CASE = SSDCase("o", 2, 20, 2, 4, 3, 5, visits=13, per_sample=True, gap=True)
LONG = SSDCase("l", 1, 70, 1, 2, 3, 5)
BACKENDS = [
    pytest.param("cpu", marks=pytest.mark.skipif(not built, reason="CPU kernels were not built")),
    "matmul",
    "reference",
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_warned", set())


def with_gradients(inputs):
    return [
        x.requires_grad_() if x is not None and x.is_floating_point() else x
        for x in inputs.values()
    ]


def test_it_is_exported():
    assert tread_ssm.ssd is tread_ssm.scan.ssd is ssd and callable(ssd)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [CASE, LONG], ids=str)
def test_opcheck(backend, case):
    inputs = with_gradients(ssd_inputs(case, torch.float32))
    torch.library.opcheck(torch.ops.tread_ssm.ssd_forward, (*inputs, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_for_all_draws_of_a_length(backend):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def function(**inputs):
        return ssd(**inputs, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for seed in range(3):
        inputs = ssd_inputs(CASE, torch.float32, seed=seed)
        got, want = run_with_gradients(compiled, inputs), run_with_gradients(function, inputs)
        for name in want:
            assert_close(got[name], want[name])
    assert counter.frame_count == 1


def test_activation_checkpointing_gives_the_same_gradients():
    inputs = ssd_inputs(CASE, torch.float32)

    def checkpointed(**kwargs):
        return checkpoint(ssd, *kwargs.values(), use_reentrant=False)

    got, want = run_with_gradients(checkpointed, inputs), run_with_gradients(ssd, inputs)
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", [CASE, LONG], ids=str)
def test_flops_follow_the_stated_convention(device, case):
    with FlopCounterMode(display=False) as counter:
        ssd(*with_gradients(ssd_inputs(case, torch.float32, device))).sum().backward()
    steps = case.batch * (case.visits or case.length) * case.heads * case.states * case.channels
    assert counter.get_total_flops() == steps * sum(FLOPS_PER_SSD_STEP.values())


@pytest.mark.parametrize("v_dtype", [torch.float32, torch.bfloat16])
def test_mixed_dtypes_are_computed_in_the_wider_one(v_dtype):
    inputs = ssd_inputs(CASE, torch.bfloat16)
    mixed = {**inputs, "q": inputs["q"].float(), "v": inputs["v"].to(v_dtype)}
    wide = {k: inputs[k].float() if k in ("q", "k", "v") else x for k, x in inputs.items()}
    got, want = run_with_gradients(ssd, mixed), run_with_gradients(ssd, wide, grad_dtype=v_dtype)
    for name in want:
        assert got[name].dtype == mixed["v" if name == "y" else name].dtype, name
        assert_close(got[name], want[name].to(got[name].dtype))


def test_the_choice_on_a_cpu(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if built:
            assert dispatch.choose_backend(None, "cpu", torch.float32, SSD) == "cpu"
        assert dispatch.choose_backend(None, "cpu", torch.float64, SSD) == "matmul"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    assert dispatch.choose_backend(None, "cpu", torch.float32, SSD) == "reference"
    assert dispatch.choose_backend("matmul", "cpu", torch.float32, SSD) == "matmul"


def test_the_environment_may_name_a_backend_that_only_others_have(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "chunked")
    assert dispatch.choose_backend(None, "cpu", torch.float64, SSD) == "matmul"
    assert dispatch.choose_backend(None, "cpu", torch.float32) == "chunked"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"TREAD_SSM_BACKEND='fast': there are .*matmul"):
        dispatch.choose_backend(None, "cpu", torch.float64, SSD)
    with pytest.raises(ValueError, match=r"backend='chunked': there are .*matmul"):
        ssd(**ssd_inputs(CASE, torch.float32), backend="chunked")


BAD = [
    ("q", lambda t: t[0], r"ssd: q has shape \(20, 2, 3\); expected \(B, L, G, N\)"),
    ("q", lambda t: t.long(), r"q is torch.int64; a real floating dtype"),
    ("k", lambda t: t[..., :2], r"k has shape \(2, 20, 2, 2\).*\(2, 20, 2, 3\) like q"),
    ("v", lambda t: t[:, :5], r"v has shape \(2, 5, 4, 5\)"),
    ("v", lambda t: t[:, :, :3], r"log_decay has shape \(2, 20, 4\)"),
    ("log_decay", lambda t: t.unsqueeze(-1), r"log_decay has shape \(2, 20, 4, 1\)"),
    ("order", lambda t: t.float(), r"order is torch.float32; an integer"),
    ("order", lambda t: t.expand(2, -1)[:1].expand(3, -1), r"order has shape \(3, 13\)"),
    ("order", lambda t: torch.arange(21), r"K = 21 visits; 1 to L = 20"),
    ("order", lambda t: t + 20, r"positions run from 2\d to 3\d, but must lie in 0\.\.19"),
    ("order", lambda t: t * 0, r"visited more than once"),
    ("gap", lambda t: t - 9, r"gap: it holds -9; .*at least 0"),
    ("v", lambda t: t.to("meta"), r"v is on meta, but the input on cpu"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_bad_arguments_are_named(name, spoil, message, backend):
    x = ssd_inputs(CASE, torch.float32)
    if "K = 21" in message:
        x["gap"] = None
    with pytest.raises((ValueError, TypeError), match=message):
        ssd(**{**x, name: spoil(x[name])}, backend=backend)


def test_heads_must_be_a_multiple_of_groups():
    x = ssd_inputs(CASE, torch.float32)
    with pytest.raises(ValueError, match=r"H = 3 heads, q and k have G = 2 groups"):
        ssd(**{**x, "v": x["v"][:, :, :3], "log_decay": x["log_decay"][:, :, :3]})


def test_backends_without_scale_and_diagonal_say_so():
    arguments = ssd_inputs(SSDCase("t", terms=True), torch.float32).values()
    with pytest.raises(ValueError, match=r"decayed\.matmul takes no scale .*call tread_ssm\.ssd"):
        torch.ops.tread_ssm.ssd_forward(*arguments, "matmul")
    (_, _, v, *_), states = arguments, torch.empty(2, 0, 1, 16, 24)
    with pytest.raises(ValueError, match=r"decayed\.matmul takes no scale"):
        torch.ops.tread_ssm.ssd_backward(v, *arguments, states, "matmul")


def test_second_derivatives_are_refused():
    inputs = ssd_inputs(CASE, torch.float64)
    inputs["q"].requires_grad_()
    (first,) = torch.autograd.grad(ssd(**inputs).sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()
