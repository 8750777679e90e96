"""The gate and the norm behind a scan: every backend against its formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.scan.random_calls import gate
from tests.scan.selective.cases import (
    TOLERANCE,
    assert_close_to_reference,
    relative_rms,
    run_with_gradients,
)
from tread_ssm.scan import compiled, gated_norm
from tread_ssm.scan.gated import cpu

needs_kernels = pytest.mark.skipif(
    cpu.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="CPU kernels were not built",
)
BACKENDS = [pytest.param("cpu", marks=needs_kernels), "reference"]
SHAPES = ((2, 5, 24, 1), (3, 7, 66, 2), (1, 40, 384, 1), (2, 3, 5, 1))  # B, L, E, groups


def inputs_of(shape: tuple[int, ...], dtype: torch.dtype, weight: bool = True) -> dict:
    g = torch.Generator().manual_seed(0)
    y, z = (2 * torch.randn(shape[:3], generator=g) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    w = torch.rand(shape[2], generator=g).add(0.5).to(wide) if weight else None
    return {"u": y.to(dtype), "z": z.to(dtype), "weight": w, "groups": shape[3]}


def by_hand(u: Tensor, z: Tensor, weight: Tensor | None, groups: int) -> Tensor:
    gated = u * z / (1 + torch.exp(-z))
    if weight is None:
        return gated
    parts = [p / (p.square().mean(-1, keepdim=True) + 1e-5).sqrt() for p in gated.chunk(groups, -1)]
    return torch.cat(parts, -1) * weight


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_specification_is_its_formula(shape: tuple[int, ...], weight: bool) -> None:
    inputs = inputs_of(shape, torch.float64, weight)
    got, want = run_with_gradients(gate, inputs), run_with_gradients(by_hand, inputs)
    for name in want:
        assert relative_rms(got[name], want[name]) < 1e-13, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend: str, shape: tuple[int, ...], weight: bool, dtype: torch.dtype) -> None:
    inputs = inputs_of(shape, dtype, weight)
    assert_close_to_reference(gate, inputs, backend, TOLERANCE[dtype])


@needs_kernels
@pytest.mark.parametrize("level", compiled.instruction_sets())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_and_number_of_threads(
    level: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = compiled.load(level, cpu.fits)
    assert kernels is not None, f"kernels for {level} were not built"
    monkeypatch.setattr(cpu, "library", lambda: (level, kernels))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    inputs = inputs_of((3, 7, 66, 2), torch.float32)
    assert_close_to_reference(gate, inputs, "cpu", TOLERANCE[torch.float32])
    first, second = (run_with_gradients(gate, inputs, backend="cpu") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_kernels
def test_slices_of_wider_rows_are_read_in_place() -> None:
    inputs = inputs_of((2, 5, 24, 1), torch.float32)
    rows = torch.cat([inputs["u"], inputs["z"], torch.full((2, 5, 3), torch.nan)], -1)
    u, z, _ = rows.split([24, 24, 3], -1)
    assert all(compiled.native_rows(x) is x for x in (u, z))
    got = run_with_gradients(gate, {**inputs, "u": u, "z": z}, backend="cpu")
    want = run_with_gradients(gate, inputs, backend="cpu")
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    y, z = (torch.randn(2, 3, 2, 5, requires_grad=True) for _ in range(2))
    weight = torch.rand(2, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.tread_ssm.gate_forward, (y, z, weight, backend))
    torch.library.opcheck(torch.ops.tread_ssm.gate_forward, (y, z, None, backend))


def test_a_compiled_call_is_checked_as_any_other() -> None:
    """Without a kernel, the compiler sees plain torch, which would broadcast."""
    compiled_norm = torch.compile(gated_norm, backend="eager")
    y = torch.randn(2, 3, 8)
    want = gated_norm(y, y, backend="reference")
    assert torch.equal(compiled_norm(y, y, backend="reference"), want)
    with pytest.raises(ValueError, match=r"gated_norm: z has shape \(1, 3, 1, 8\)"):
        compiled_norm(y, y[:1], backend="reference")


def test_nan_comes_through() -> None:
    inputs = inputs_of((1, 3, 24, 1), torch.float32)
    inputs["z"][0, 1, 5] = torch.nan
    y = gate(**inputs)
    assert y[0, 1].isnan().all() and y[0, [0, 2]].isfinite().all()


def test_bad_arguments_are_named() -> None:
    y = torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="y has 8 channels, not 3 parts"):
        gated_norm(y, y, None, 3)
    for groups in (0, -2, 2.0):
        with pytest.raises(ValueError, match=r"gated_norm: groups is .*at least 1"):
            gated_norm(y, y, None, groups)
    with pytest.raises(TypeError, match="gated_norm: y is NoneType; a tensor is needed"):
        gated_norm(None, y)
    with pytest.raises(ValueError, match=r"gated_norm: z has shape \(2, 3, 1, 6\)"):
        gated_norm(y, y[..., :6])
    with pytest.raises(TypeError, match=r"z is torch\.int64"):
        gated_norm(y, y.long())
    torch.testing.assert_close(gated_norm(y, y), F.silu(y) * y)
