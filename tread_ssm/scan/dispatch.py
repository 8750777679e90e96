"""selective_scan and causal_conv: check the arguments, pick a backend, call its operator.

The choice, first match wins: the argument `backend`, the environment variable TREAD_SSM_BACKEND,
the best that can run on the device and dtype at hand. `python -m tread_ssm.env` shows it.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, W taps.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from tread_ssm.scan.ops import BACKENDS, backend_module, conv_op, scan_op

ENVIRONMENT_VARIABLE = "TREAD_SSM_BACKEND"
MAX_STATES = 64

_warned: set[str] = set()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    order: Tensor | None = None,
    gap: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Selective scan (S6) of Mamba along any visiting order. Gu & Dao, arXiv 2312.00752, eq. 2.

        dt  = softplus(delta + delta_bias)
        h_k = exp((1 + gap_k) dt_k A) h_(k-1) + dt_k B_k u_k
        y_k = (C_k . h_k + D u_k) * silu(z_k)

    k runs over the visits: inputs are read at position order[k] and y_k is written there.
    Positions that are never visited get zeros, and zero gradients.

    Args:
        u, delta, z: (B, L, D) float. z None: no gate.
        A: (D, N) real, negative; N at most 64.
        B, C: (B, L, N).
        D, delta_bias: (D,) or None.
        delta_softplus: whether dt passes through softplus.
        order: (K,) or (B, K) integers: distinct positions in 0..L-1 in the order of their visits.
            None: 0, 1, ..., L-1. Values are checked on the CPU only.
        gap: like order ((L,) or (B, L) without one), non-negative integers: number of missing
            tokens between this visit and the one before, over which the state decays too.
        backend: one of BACKENDS, or None for the environment variable or the best available.

    Returns:
        (B, L, D) in u's dtype. The state and all sums are float32 (float64 for float64 u).

    Under autocast every input keeps its own dtype. Where u, delta, B, C and z differ, they are
    brought to the one that torch's promotion gives; A, D and delta_bias go to the state's dtype.
    Differentiable once in every floating argument, in reverse mode (backward) only.

    Raises:
        ValueError: shapes, devices or positions that do not fit, or a backend that cannot run.
        TypeError: integers where floats belong, or the other way round.
    """
    _check_scan(u, delta, A, B, C, D, z, delta_bias, order, gap)
    dtype = u.dtype
    for x in (delta, B, C, *(() if z is None else (z,))):
        dtype = torch.promote_types(dtype, x.dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y, _ = scan_op(choose_backend(backend, u.device.type, dtype))(
        u.to(dtype),
        delta.to(dtype),
        A.to(wide),
        B.to(dtype),
        C.to(dtype),
        None if D is None else D.to(wide),
        None if z is None else z.to(dtype),
        None if delta_bias is None else delta_bias.to(wide),
        delta_softplus,
        None if order is None else order.to(torch.int64),
        None if gap is None else gap.to(torch.int64),
    )
    return y.to(u.dtype)


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    order: Tensor | None = None,
    gap: Tensor | None = None,
    *,
    activation: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Causal depthwise convolution along any visiting order, then SiLU (Mamba, section 3.4).

        y_k = silu(bias + sum over distances j of weight[:, W-1-j] * (the token j back))

    Args:
        x: (B, L, D) float.
        weight: (D, W), W from 2 to 4; the last tap is the token itself.
        bias: (D,) or None.
        order: as in selective_scan; unvisited positions get zeros.
        gap: None: "j back" counts visits. Given (integers as in selective_scan): it counts places
            along the full scan, and the tap of a missing token reads zero.
        activation: whether SiLU follows.
        backend: as in selective_scan.

    Returns:
        (B, L, D) in x's dtype; sums are float32 (float64 for float64 x). weight and bias may be
        float32 with 16-bit x. Differentiable once in x, weight and bias.

    Raises:
        ValueError, TypeError: as selective_scan.
    """
    where = "causal_conv"
    _check_tensor(where, "x", x, (None, None, None), "(B, L, D)", x)
    batch, length, dim = x.shape
    _check_tensor(where, "weight", weight, (dim, None), f"(D, W) with D = {dim}", x)
    if not 2 <= weight.shape[1] <= 4:
        raise ValueError(f"{where}: weight has {weight.shape[1]} taps; W must be 2, 3 or 4.")
    if bias is not None:
        _check_tensor(where, "bias", bias, (dim,), f"(D,) with D = {dim}", x)
    _check_visits(where, batch, length, order, gap, x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return conv_op(choose_backend(backend, x.device.type, x.dtype))(
        x,
        weight.to(wide),
        None if bias is None else bias.to(wide),
        None if order is None else order.to(torch.int64),
        None if gap is None else gap.to(torch.int64),
        activation,
    )


@torch.compiler.assume_constant_result
def choose_backend(name: str | None, device_type: str, dtype: torch.dtype) -> str:
    """Name of the backend for this device and dtype; `name` None: see the top of this file.

    Raises ValueError where the one asked for is unknown or cannot run.
    """
    asked_by = "backend" if name else ENVIRONMENT_VARIABLE
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{asked_by}={name!r}: there are {', '.join(BACKENDS)}.")
    if device_type == "meta":  # shapes only, and the same for all
        return name or "reference"
    device = torch.device(device_type)
    if name is not None:
        reason = backend_module(name).unavailable(device, dtype)
        if reason:
            raise ValueError(f"{asked_by}={name!r} cannot run {dtype} on {device_type}: {reason}")
        return name
    reasons: dict[str, str] = {}
    for candidate in BACKENDS:
        reason = unavailable(candidate, device, dtype)
        if reason is None:
            if dtype != torch.float64:  # nobody expects speed of float64
                _warn_if_slow(candidate, device_type, reasons)
            return candidate
        reasons[candidate] = reason
    raise ValueError(f"no scan backend for {dtype} on {device_type}: {reasons}")


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run on a device with a dtype, or None.

    What stops its module from loading or the device from starting is a reason too, not an error.
    """
    try:
        reason: str | None = backend_module(backend).unavailable(device, dtype)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return reason


def _warn_if_slow(choice: str, device_type: str, reasons: dict[str, str]) -> None:
    """Say once per process that a fallback was taken, and why."""
    expected = {"cpu": ("cpu",), "cuda": ("triton", "mamba_ssm", "cuda")}.get(device_type, ())
    if choice in expected or choice in _warned:
        return
    _warned.add(choice)
    why = "; ".join(f"{name}: {reasons[name]}" for name in expected if name in reasons)
    warnings.warn(
        f"tread_ssm scans on {device_type} with the slow backend {choice!r}. {why}", stacklevel=4
    )


def _check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
) -> None:
    where = "selective_scan"
    _check_tensor(where, "u", u, (None, None, None), "(B, L, D)", u)
    batch, length, dim = u.shape
    like_u = f"(B, L, D) = {(batch, length, dim)} like u"
    _check_tensor(where, "delta", delta, (batch, length, dim), like_u, u)
    _check_tensor(where, "A", A, (dim, None), f"(D, N) with D = {dim}", u)
    state = A.shape[1]
    if not 1 <= state <= MAX_STATES:
        raise ValueError(f"{where}: A has N = {state} states; 1 to {MAX_STATES} are supported.")
    like_bc = f"(B, L, N) = {(batch, length, state)}"
    _check_tensor(where, "B", B, (batch, length, state), like_bc, u)
    _check_tensor(where, "C", C, (batch, length, state), like_bc, u)
    if z is not None:
        _check_tensor(where, "z", z, (batch, length, dim), like_u, u)
    if D is not None:
        _check_tensor(where, "D", D, (dim,), f"(D,) with D = {dim}", u)
    if delta_bias is not None:
        _check_tensor(where, "delta_bias", delta_bias, (dim,), f"(D,) with D = {dim}", u)
    _check_visits(where, batch, length, order, gap, u)


def _check_tensor(
    where: str, name: str, x: Tensor, shape: tuple[int | None, ...], expected: str, first: Tensor
) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{where}: {name} is {x.dtype}; a real floating dtype is needed.")
    fits = x.ndim == len(shape) and all(
        want is None or got == want for got, want in zip(x.shape, shape, strict=True)
    )
    if not fits or 0 in x.shape:
        raise ValueError(f"{where}: {name} has shape {tuple(x.shape)}; expected {expected}.")
    if x.device != first.device:
        raise ValueError(
            f"{where}: {name} is on {x.device}, but the input on {first.device}; move one."
        )


def _check_visits(
    where: str, batch: int, length: int, order: Tensor | None, gap: Tensor | None, first: Tensor
) -> None:
    visits = length if order is None else order.shape[-1] if order.ndim else 0
    for name, x in (("order", order), ("gap", gap)):
        if x is None:
            continue
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"{where}: {name} is {x.dtype}; an integer dtype is needed.")
        if x.ndim not in (1, 2) or x.shape[-1] != visits or (x.ndim == 2 and len(x) != batch):
            raise ValueError(
                f"{where}: {name} has shape {tuple(x.shape)}; expected (K,) or (B, K) with "
                f"B = {batch}, K = {visits}."
            )
        if x.device != first.device:
            raise ValueError(
                f"{where}: {name} is on {x.device}, but the input on {first.device}; move one."
            )
    if not 1 <= visits <= length:
        raise ValueError(f"{where}: order has K = {visits} visits; 1 to L = {length} are possible.")
