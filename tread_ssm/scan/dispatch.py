"""The public operations: each brings its arguments to one dtype, picks a backend and calls it.

The choice, first match wins: the argument `backend`, the environment variable TREAD_SSM_BACKEND
where the operation has a backend of that name, the best that can run on the device and dtype at
hand. `tread-ssm env` shows it.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, W taps, G groups,
H heads, P channels of a head, E channels.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tread_ssm.scan.decayed.masked import LONGEST
from tread_ssm.scan.gated import reference as plain
from tread_ssm.scan.inputs import (
    BothInputs,
    ConvInputs,
    GateInputs,
    ScanInputs,
    SSDInputs,
    converted,
)
from tread_ssm.scan.ops import (
    BOTH,
    CONV,
    GATE,
    OPERATIONS,
    SCAN,
    SELECTIVE_BACKENDS,
    SSD,
    Operation,
)
from tread_ssm.tokens import is_whole

ENVIRONMENT_VARIABLE = "TREAD_SSM_BACKEND"
BACKENDS = tuple(SELECTIVE_BACKENDS)

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
        u: (B, L, D) float.
        delta: (B, L, D) float, the step size before bias and softplus.
        A: (D, N) real, negative; N at most 64.
        B: (B, L, N).
        C: (B, L, N).
        D: (D,) or None.
        z: (B, L, D) float; None: no gate.
        delta_bias: (D,) or None.
        delta_softplus: Whether dt passes through softplus.
        order: (K,) or (B, K) integers: distinct positions in 0..L-1 in the order of their visits.
            None: 0, 1, ..., L-1. Values are checked on the CPU only.
        gap: Like order ((L,) or (B, L) without one), non-negative integers: number of missing
            tokens between this visit and the one before, over which the state decays too.
        backend: One of BACKENDS, or None for the environment variable or the best available.

    Returns:
        (B, L, D) in u's dtype. The state and all sums are float32 (float64 for float64 u).

    Under autocast every input keeps its own dtype. Where u, delta, B, C and z differ, they are
    brought to the one that torch's promotion gives; A, D and delta_bias go to the state's dtype.
    Differentiable once in every floating argument, in reverse mode (backward) only.

    Raises:
        ValueError: Shapes, devices or positions that do not fit, or a backend that cannot run.
        TypeError: Integers where floats belong, or the other way round.
        NotImplementedError: Forward-mode differentiation or vmap.
    """
    x = converted(
        "selective_scan",
        ScanInputs(u, delta, A, B, C, D, z, delta_bias, order, gap, delta_softplus),
    )
    chosen = choose_backend(backend, u.device.type, x.u.dtype, SCAN)
    y, _ = torch.ops.tread_ssm.scan_forward.default(*x, chosen)
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
        order: As in selective_scan; unvisited positions get zeros.
        gap: None: "j back" counts visits. Given (integers as in selective_scan): it counts places
            along the full scan, and the tap of a missing token reads zero.
        activation: Whether SiLU follows.
        backend: As in selective_scan.

    Returns:
        (B, L, D) in x's dtype; sums are float32 (float64 for float64 x). weight and bias may be
        float32 with 16-bit x. Differentiable once in x, weight and bias, by backward only.

    Raises:
        ValueError, TypeError, NotImplementedError: As selective_scan.
    """
    inputs = converted("causal_conv", ConvInputs(x, weight, bias, order, gap, activation))
    chosen = choose_backend(backend, x.device.type, x.dtype, CONV)
    y: Tensor = torch.ops.tread_ssm.conv_forward.default(*inputs, chosen)[0]
    return y


def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    order: Tensor | None = None,
    gap: Tensor | None = None,
    scale: Tensor | None = None,
    diagonal: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The decayed product of Mamba-2 and Mamba-3 (SSD) along any visiting order.

    Dao & Gu, arXiv 2405.21060, sections 3 to 6; per head, with i and j over the visits:

        h_i = exp((1 + gap_i) log_decay_i) h_(i-1) + scale_i k_i v_i^T
        y_i = q_i h_i + diagonal_i v_i
            = sum over j not after i of (q_i . k_j) exp(c_i - c_j) scale_j v_j + diagonal_i v_i

    c is the sum of log decays. Mamba-2: q = C, k = B, v = x, log_decay = dt A, scale = dt and
    diagonal = D. Inputs are read at position order[i] and y_i
    is written there. Positions that are never visited get zeros, and zero gradients.

    Args:
        q: (B, L, G, N) float. Head h reads group h // (H / G).
        k: (B, L, G, N).
        v: (B, L, H, P), H a multiple of G.
        log_decay: (B, L, H), at most 0 (not checked).
        order: As in selective_scan.
        gap: As in selective_scan; a visit's decay applies 1 + gap times.
        scale: (B, L, H) or None: 1.
        diagonal: (B, L, H) or None: 0.
        backend: One of the names in SSD.backends (ops.py), or None as in selective_scan.

    Returns:
        (B, L, H, P) in v's dtype. States, sums of log decays and all other sums are float32
        (float64 for float64 v); the Triton kernels round what they multiply to the data's dtype.

    Where q, k and v differ in dtype, they are brought to the one that torch's promotion gives;
    log_decay, scale and diagonal go to the state's. Differentiable once in every floating argument,
    by backward only.

    Raises:
        ValueError, TypeError, NotImplementedError: As selective_scan.
    """
    x = converted("ssd", SSDInputs(q, k, v, log_decay, order, gap, scale, diagonal))
    chosen = choose_backend(backend, q.device.type, x.v.dtype, SSD)
    if not (x.scale is None and x.diagonal is None) and not _fuses_terms(chosen):
        x.check()
        y = _around(x, chosen)
    else:
        y, _ = torch.ops.tread_ssm.ssd_forward.default(*x, chosen)
    return y.to(v.dtype)


@torch.compiler.assume_constant_result
def _fuses_terms(backend: str) -> bool:
    return bool(SSD.backend(backend).FUSES_TERMS)


def _around(x: SSDInputs, backend: str) -> Tensor:
    """ssd with scale and diagonal outside of the operator, where torch.compile can fuse them."""
    written = x.v if x.scale is None else (x.v * x.scale.unsqueeze(-1)).to(x.v.dtype)
    bare = x._replace(v=written, scale=None, diagonal=None)
    y: Tensor = torch.ops.tread_ssm.ssd_forward.default(*bare, backend)[0]
    return _plus_diagonal(y, x.diagonal, x.v, x.order)


def _plus_diagonal(y: Tensor, diagonal: Tensor | None, v: Tensor, order: Tensor | None) -> Tensor:
    """y + diagonal v where something was visited."""
    if diagonal is None:
        return y
    if order is not None and order.shape[-1] < v.shape[1]:
        visited = diagonal.new_zeros(diagonal.shape[:2])
        visited = visited.scatter(1, order.expand(len(visited), -1), 1.0)
        diagonal = diagonal * visited.unsqueeze(-1)
    return y + diagonal.unsqueeze(-1) * v


class Direction(NamedTuple):
    """What one direction of `ssd_both_ways` has of its own; the arguments of `ssd`."""

    q: Tensor
    k: Tensor
    log_decay: Tensor
    order: Tensor | None = None
    gap: Tensor | None = None
    scale: Tensor | None = None


def ssd_both_ways(
    v: Tensor,
    there: Direction,
    back: Direction,
    diagonal: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """`ssd` along two orders of the same positions, summed.

    The backend `matmul` makes one product of it, in which the way back is a second mask, for up to
    64 positions; where both ways have the very same tensors as q and k, these are multiplied once.
    Other backends run twice.

    Args:
        v: (B, L, H, P) float, as in `ssd`.
        there: The first direction.
        back: The second. Its order visits the same positions.
        diagonal: (B, L, H) or None: 0. Added once.
        backend: As in `ssd`.

    Returns:
        (B, L, H, P) in v's dtype; see `ssd`.

    Raises:
        ValueError, TypeError, NotImplementedError: As selective_scan.
    """
    if (there.scale is None) != (back.scale is None):
        raise ValueError("ssd_both_ways: one way has a scale, the other has none; give both one.")
    first = SSDInputs(there.q, there.k, v, *there[2:], diagonal)
    x = converted("ssd_both_ways", first)
    chosen = choose_backend(backend, v.device.type, x.v.dtype, SSD)
    if chosen not in BOTH.backends or v.shape[1] > LONGEST:
        return ssd(*first, backend=chosen) + ssd(back.q, back.k, v, *back[2:], backend=chosen)
    x.check()
    own = [None if b is t else b for b, t in zip(back, there, strict=True)]
    own[3:5] = back.order, back.gap
    if own[0] is not None or own[1] is not None:
        own[:2] = back.q, back.k
    both = converted("ssd_both_ways", BothInputs(*x[:7], *own))
    y = torch.ops.tread_ssm.both_forward.default(*both, chosen)[0]
    return _plus_diagonal(y, x.diagonal, both.v, x.order).to(v.dtype)


def gated_norm(
    y: Tensor,
    z: Tensor,
    weight: Tensor | None = None,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """The gate behind a scan and the norm behind the gate: weight * RMSNorm(y * SiLU(z)).

    As in Mamba-2 (Dao & Gu, arXiv 2405.21060, section 7.1). Nothing but the inputs is kept for the
    backward pass.

    Args:
        y: (B, L, E) float.
        z: (B, L, E) float.
        weight: (E,), or None: the gate alone.
        groups: Equal parts of the channels that are normed apart.
        backend: One of the names in GATE.backends (ops.py), or None as in selective_scan.

    Returns:
        (B, L, E) in y's dtype; sums are float32 (float64 for float64 y). Differentiable once in
        every argument, by backward only.

    Raises:
        ValueError, TypeError, NotImplementedError: As selective_scan.
    """
    if not is_whole(groups) or groups < 1:
        raise ValueError(f"gated_norm: groups is {groups!r}; use a whole number, at least 1.")
    given: dict[str, Any] = {"y": y, "z": z, "weight": weight}
    for name, tensor in given.items():
        if isinstance(tensor, Tensor) and tensor.ndim:
            if tensor.shape[-1] % groups:
                raise ValueError(
                    f"gated_norm: {name} has {tensor.shape[-1]} channels, not {groups} parts."
                )
            given[name] = tensor.unflatten(-1, (groups, -1))
    x = converted("gated_norm", GateInputs(**given))
    chosen = choose_backend(backend, y.device.type, x.y.dtype, GATE)
    if torch.compiler.is_compiling() and chosen == "reference":
        x.check()
        out = plain.gate_forward(x)  # the compiler fuses it with what stands around it
    else:
        out = torch.ops.tread_ssm.gate_forward.default(*x, chosen)[0]
    return out.flatten(-2).to(y.dtype)


@torch.compiler.assume_constant_result
def choose_backend(
    name: str | None, device_type: str, dtype: torch.dtype, operation: Operation = SCAN
) -> str:
    """Name of an operation's backend for this device and dtype; `name` None: see the top of this
    file.

    Raises:
        ValueError: The one asked for is unknown or cannot run.
    """
    asked_by = "backend" if name else ENVIRONMENT_VARIABLE
    name = name or _from_environment(operation)
    if name is not None and name not in operation.backends:
        raise ValueError(f"{asked_by}={name!r}: there are {', '.join(operation.backends)}.")
    if device_type == "meta":  # shapes only, and the same for all
        return name or "reference"
    device = torch.device(device_type)
    if name is not None:
        reason = operation.backend(name).unavailable(device, dtype)
        if reason:
            raise ValueError(f"{asked_by}={name!r} cannot run {dtype} on {device_type}: {reason}")
        return name
    reasons: dict[str, str] = {}
    for candidate in operation.backends:
        reason = unavailable(candidate, device, dtype, operation)
        if reason is None:
            if dtype != torch.float64:  # nobody expects speed of float64
                _warn_if_slow(operation, candidate, device_type, reasons)
            return candidate
        reasons[candidate] = reason
    raise ValueError(f"no backend of {operation.name} for {dtype} on {device_type}: {reasons}")


def _from_environment(operation: Operation) -> str | None:
    """The name in the environment, unless it is that of other operations' backends alone."""
    name = os.environ.get(ENVIRONMENT_VARIABLE) or None
    elsewhere = any(name in other.backends for other in OPERATIONS)
    return None if name not in operation.backends and elsewhere else name


def unavailable(
    backend: str, device: torch.device, dtype: torch.dtype, operation: Operation = SCAN
) -> str | None:
    """Why a backend cannot run on a device with a dtype, or None.

    What stops its module from loading or the device from starting is a reason too, not an error.
    """
    try:
        reason: str | None = operation.backend(backend).unavailable(device, dtype)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return reason


def _warn_if_slow(
    operation: Operation, choice: str, device_type: str, reasons: dict[str, str]
) -> None:
    """Say once per process that a slow backend was taken, and why none of the fast ones."""
    if device_type in operation.backend(choice).FAST_ON or choice in _warned:
        return
    _warned.add(choice)
    why = "; ".join(
        f"{name}: {reason}"
        for name, reason in reasons.items()
        if device_type in operation.backend(name).FAST_ON
    )
    warnings.warn(
        f"{operation.name} runs on {device_type} with the slow backend {choice!r}. {why}",
        stacklevel=4,
    )
