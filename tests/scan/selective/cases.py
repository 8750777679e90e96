"""The cases that every scan and convolution backend must pass, and the comparison itself.

Every comparison is against the reference in float64 on the same (already rounded) inputs, by
relative RMS error, for the output and for the gradient of every floating argument, with all fresh
memory filled with NaN beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tread_ssm.scan import causal_conv, selective_scan

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


@dataclass(frozen=True)
class ScanCase:
    """One selective scan; `visits` is K, the number of visited positions (None: no order)."""

    name: str
    batch: int = 2
    length: int = 63
    dim: int = 20
    state: int = 16
    visits: int | None = None
    per_sample: bool = False
    gap: bool = False
    skip: bool = True
    gate: bool = True
    bias: bool = True
    softplus: bool = True
    dt: Literal["usual", "tiny", "large"] = "usual"
    a_max: float = 16.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ConvCase:
    """One causal convolution; fields as in ScanCase."""

    name: str
    batch: int = 2
    length: int = 63
    dim: int = 20
    width: int = 4
    visits: int | None = None
    per_sample: bool = False
    gap: bool = False
    bias: bool = True
    activation: bool = True

    def __str__(self) -> str:
        return self.name


SCAN_CASES = (
    ScanCase("plain"),
    ScanCase("length_1", length=1),
    ScanCase("length_238", length=238, dim=16),
    ScanCase("length_500", length=500, dim=8, batch=1),
    ScanCase("bare", skip=False, gate=False, bias=False),
    ScanCase("no_gate", gate=False),
    ScanCase("no_softplus", softplus=False),
    ScanCase("dim_1", dim=1),
    ScanCase("dim_33", dim=33, length=40),
    ScanCase("dim_64", dim=64, length=40),
    ScanCase("state_1", state=1),
    ScanCase("state_5", state=5),
    ScanCase("state_24", state=24),
    ScanCase("state_64", state=64, length=40),
    ScanCase("order_shared", visits=63),
    ScanCase("order_per_sample", visits=63, per_sample=True),
    ScanCase("subset_shared", visits=31),
    ScanCase("subset_per_sample", visits=33, per_sample=True),
    ScanCase("subset_one_token", visits=1, per_sample=True),
    ScanCase("subset_238_of_500", length=500, visits=238, per_sample=True, dim=8),
    ScanCase("gap_shared", visits=31, gap=True),
    ScanCase("gap_per_sample", visits=33, per_sample=True, gap=True, state=5, dim=9),
    ScanCase("gap_without_order", gap=True),
    ScanCase("dt_tiny", dt="tiny", length=238),
    ScanCase("dt_large", dt="large", length=128, a_max=64.0),
    ScanCase("fast_decay", a_max=64.0, length=128),
)
"""For every backend; small enough for an interpreter."""

LONG_SCAN_CASES = (
    ScanCase("length_4096", length=4096, batch=1, dim=16),
    ScanCase("length_4096_dt_tiny", length=4096, batch=1, dim=16, dt="tiny"),
    ScanCase("length_4096_dt_large", length=4096, batch=1, dim=16, dt="large", a_max=64.0),
)
"""For compiled backends only."""

CONV_CASES = (
    ConvCase("width_4"),
    ConvCase("width_3", width=3),
    ConvCase("width_2", width=2),
    ConvCase("length_1", length=1),
    ConvCase("length_2", length=2),
    ConvCase("length_238", length=238, dim=33),
    ConvCase("dim_1", dim=1),
    ConvCase("dim_64", dim=64),
    ConvCase("no_bias", bias=False),
    ConvCase("no_activation", activation=False),
    ConvCase("order_shared", visits=63),
    ConvCase("order_per_sample", visits=63, per_sample=True),
    ConvCase("subset_per_sample", visits=33, per_sample=True, width=3),
    ConvCase("subset_one_token", visits=1),
    ConvCase("gap_shared", visits=40, gap=True),
    ConvCase("gap_per_sample", visits=40, per_sample=True, gap=True),
    ConvCase("gap_width_2", visits=40, per_sample=True, gap=True, width=2, activation=False),
)


def make_order(
    batch: int, length: int, visits: int | None, per_sample: bool, generator: torch.Generator
) -> Tensor | None:
    """(K,) or (B, K) distinct positions in random order, or None."""
    if visits is None:
        return None
    rows = [torch.randperm(length, generator=generator)[:visits] for _ in range(batch)]
    return torch.stack(rows) if per_sample else rows[0]


def make_gap(
    batch: int, length: int, visits: int | None, per_sample: bool, generator: torch.Generator
) -> Tensor:
    """Missing tokens before each visit, 0 to 3, shaped like the order."""
    shape = (batch, visits or length) if per_sample else (visits or length,)
    return torch.randint(0, 4, shape, generator=generator)


def scan_inputs(
    case: ScanCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor | bool | None]:
    """Keyword arguments of selective_scan; A, D and delta_bias stay float32 for 16-bit inputs."""
    g = torch.Generator().manual_seed(seed)
    batch, length, dim, state = case.batch, case.length, case.dim, case.state
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=g).to(device, to)

    # softplus(-12) = 6e-6, softplus(25) = 25: both ends of its range
    centre = {"usual": -3.0, "tiny": -12.0, "large": 25.0}[case.dt] if case.softplus else 0.0
    delta = torch.randn(batch, length, dim, generator=g) + centre
    if not case.softplus:
        delta = delta.exp() * 0.05
    A = -torch.rand(dim, state, generator=g) * (case.a_max - 0.5) - 0.5
    order = make_order(batch, length, case.visits, case.per_sample, g)
    gap = make_gap(batch, length, case.visits, case.per_sample, g) if case.gap else None
    return {
        "u": normal(batch, length, dim),
        "delta": delta.to(device, dtype),
        "A": A.to(device, wide),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(dim, to=wide) if case.skip else None,
        "z": normal(batch, length, dim) if case.gate else None,
        # positive without softplus: a negative dt would let the state grow without bound
        "delta_bias": 0.1 * normal(dim, to=wide).abs() if case.bias else None,
        "delta_softplus": case.softplus,
        "order": None if order is None else order.to(device),
        "gap": None if gap is None else gap.to(device),
    }


def conv_inputs(
    case: ConvCase, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor | bool | None]:
    """Keyword arguments of causal_conv; weight and bias stay float32 for 16-bit inputs."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    order = make_order(case.batch, case.length, case.visits, case.per_sample, g)
    gap = None
    if case.gap:
        gap = make_gap(case.batch, case.length, case.visits, case.per_sample, g)
    x = torch.randn(case.batch, case.length, case.dim, generator=g)
    weight = torch.randn(case.dim, case.width, generator=g)
    bias = torch.randn(case.dim, generator=g)
    return {
        "x": x.to(device, dtype),
        "weight": weight.to(device, wide),
        "bias": bias.to(device, wide) if case.bias else None,
        "order": None if order is None else order.to(device),
        "gap": None if gap is None else gap.to(device),
        "activation": case.activation,
    }


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, so that an element nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(before)


def run_with_gradients(function, inputs, grad_dtype=None, **options) -> dict[str, Tensor]:
    """The output under "y" and the gradient of every floating argument under its name.

    The gradient of y is drawn at random and rounded to `grad_dtype` (None: y's own).
    """
    leaves = {
        k: v.detach().clone().requires_grad_()
        for k, v in inputs.items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    y = function(**{**inputs, **leaves}, **options)
    g = torch.Generator().manual_seed(1)
    grad_y = torch.randn(y.shape, generator=g).to(grad_dtype or y.dtype).to(y.device, y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), grad_y)
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def with_gradients(inputs):
    """The same inputs as leaves that require gradients."""
    return {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def in_float64(inputs):
    """The same inputs in float64 on the CPU."""
    return {
        k: (v.cpu().double() if v.is_floating_point() else v.cpu()) if isinstance(v, Tensor) else v
        for k, v in inputs.items()
    }


def relative_rms(got: Tensor, want: Tensor) -> float:
    """RMS of the difference over RMS of the reference; NaN if anything is NaN."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    assert got.shape == want.shape, (got.shape, want.shape)
    error = (got - want).square().mean().sqrt()
    return float(error / want.square().mean().sqrt().clamp_min(1e-30))


def assert_close_to_reference(function, inputs, backend: str, tolerance: float) -> None:
    """`function(**inputs, backend=backend)` against the reference in float64."""
    with poisoned_memory():
        got = run_with_gradients(function, inputs, backend=backend)
    exact = in_float64(inputs)
    want = run_with_gradients(function, exact, got["y"].dtype, backend="reference")
    for name, value in got.items():
        like_y = next(k for k in ("u", "x", "v") if k in inputs)
        given = inputs[like_y if name == "y" else name]
        assert value.dtype == given.dtype, f"{name} came back as {value.dtype}"
    errors = {name: relative_rms(got[name], want[name]) for name in want}
    bad = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not bad, f"relative RMS error above {tolerance}: {bad}"


def assert_scan_matches(
    case: ScanCase, dtype: torch.dtype, backend: str, device: str = "cpu"
) -> None:
    """Output and all gradients of one scan against the float64 reference."""
    inputs = scan_inputs(case, dtype, device)
    assert_close_to_reference(selective_scan, inputs, backend, TOLERANCE[dtype])


def assert_conv_matches(
    case: ConvCase, dtype: torch.dtype, backend: str, device: str = "cpu"
) -> None:
    """Output and all gradients of one convolution against the float64 reference."""
    inputs = conv_inputs(case, dtype, device)
    assert_close_to_reference(causal_conv, inputs, backend, TOLERANCE[dtype])
