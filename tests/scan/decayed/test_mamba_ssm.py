"""The mamba-ssm adapter of the decayed product.

With a GPU and the package, the shared case table runs through the real kernels. Without them, what
this package adds (gather, scatter, gaps, the two steps of a visit, differentiation) is tested
around a plain function of the published signature and equations.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tests.scan.decayed.cases import CASES, SSDCase, assert_ssd_matches, ssd_inputs
from tests.scan.selective.cases import relative_rms, run_with_gradients
from tread_ssm.scan import ssd
from tread_ssm.scan.decayed import mamba_ssm as backend

CUDA = torch.device("cuda")
MISSING = backend.unavailable(CUDA, torch.float32) if torch.cuda.is_available() else "no GPU"
real = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class PlainScan(torch.autograd.Function):
    """h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T, y_t = h_t C_t (arXiv 2405.21060, section 6).

    x (B, L, H, P), dt (B, L, H), A (H,), B and C (B, L, G, N); sums in float32.
    """

    @staticmethod
    def forward(ctx, x, dt, A, B, C):
        ctx.save_for_backward(x, dt, A, B, C)
        states = PlainScan.states(x, dt, A, B)
        C = PlainScan.of_heads(C, x)
        return torch.stack(
            [torch.einsum("bhpn,bhn->bhp", h, c) for h, c in zip(states, C.unbind(1), strict=True)],
            1,
        ).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_y):
        x, dt, A, B, C = ctx.saved_tensors
        states = PlainScan.states(x, dt, A, B)
        heads_B, heads_C = (PlainScan.of_heads(t, x) for t in (B, C))
        gx, gB, gC = (torch.zeros_like(t, dtype=torch.float32) for t in (x, heads_B, heads_C))
        gdt, gA, gh = torch.zeros_like(dt), torch.zeros_like(A), torch.zeros_like(states[0])
        for t in reversed(range(x.shape[1])):
            g, step = grad_y[:, t].float(), dt[:, t]
            gC[:, t] = torch.einsum("bhpn,bhp->bhn", states[t], g)
            gh = gh + torch.einsum("bhp,bhn->bhpn", g, heads_C[:, t])
            by_x = torch.einsum("bhpn,bhn->bhp", gh, heads_B[:, t])
            gx[:, t] = step[..., None] * by_x
            gB[:, t] = step[..., None] * torch.einsum("bhpn,bhp->bhn", gh, x[:, t].float())
            decay = torch.exp(step * A)
            by_decay = decay * (gh * states[t - 1]).sum((2, 3)) if t else torch.zeros_like(decay)
            gdt[:, t] = by_decay * A + (by_x * x[:, t].float()).sum(-1)
            gA += (by_decay * step).sum(0)
            gh = decay[..., None, None] * gh
        groups = (B.shape[2], -1)
        gB, gC = (g.unflatten(2, groups).sum(3).to(B.dtype) for g in (gB, gC))
        return gx.to(x.dtype), gdt, gA, gB, gC

    @staticmethod
    def of_heads(t, x):
        return t.float().repeat_interleave(x.shape[2] // t.shape[2], 2)

    @staticmethod
    def states(x, dt, A, B):
        inputs = torch.einsum("blh,blhp,blhn->blhpn", dt, x.float(), PlainScan.of_heads(B, x))
        states, h = [], torch.zeros_like(inputs[:, 0])
        for step, new in zip(dt.unbind(1), inputs.unbind(1), strict=True):
            h = torch.exp(step * A)[..., None, None] * h + new
            states.append(h)
        return states


def plain_chunk_scan(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
    cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False,
):  # fmt: skip
    others = (D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    assert others == (None,) * 6 and not dt_softplus and not return_final_states
    assert B.dtype == C.dtype == x.dtype and chunk_size & (chunk_size - 1) == 0
    assert A.dtype == dt.dtype == torch.float32 and x.stride(-1) == B.stride(-1) == 1
    assert bool((dt >= 0).all())  # the published limits of dt
    return PlainScan.apply(x, dt, A, B, C)


@pytest.fixture
def plain_package(monkeypatch: pytest.MonkeyPatch) -> None:
    combined = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    combined.mamba_chunk_scan_combined = plain_chunk_scan
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, combined.__name__, combined)
    monkeypatch.setattr(backend, "unavailable", lambda device, dtype: None)


@pytest.mark.usefixtures("plain_package")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [c for c in CASES if c.length <= 150], ids=str)
def test_around_a_plain_function(case: SSDCase, dtype: torch.dtype) -> None:
    assert_ssd_matches(case, dtype, "mamba_ssm")


@pytest.mark.usefixtures("plain_package")
def test_log_decays_of_zero_are_exact_and_have_a_gradient() -> None:
    x = ssd_inputs(SSDCase("zero", length=40, visits=23, per_sample=True), torch.float32)
    x["log_decay"] = torch.zeros_like(x["log_decay"])
    got, want = (run_with_gradients(ssd, x, backend=name) for name in ("mamba_ssm", "reference"))
    assert float(want["log_decay"].abs().max()) > 1
    for name in want:
        assert relative_rms(got[name], want[name]) < 1e-5, name


def test_says_why_it_cannot_run() -> None:
    assert "cpu" in str(backend.unavailable(torch.device("cpu"), torch.float32))
    assert "float64" in str(backend.unavailable(CUDA, torch.float64))
    if MISSING is not None:
        assert "not installed" in str(backend.unavailable(CUDA, torch.float32))


@real
@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu(case: SSDCase) -> None:
    assert_ssd_matches(case, torch.bfloat16, "mamba_ssm", "cuda", tolerance=2e-2)
