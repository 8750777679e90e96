"""The mamba-ssm and causal-conv1d packages as a backend, where they are installed.

Both take (B, D, L), know no visiting order and no gap. So this adapter gathers the visits, calls
the packages' public functions `mamba_ssm.ops.selective_scan_interface.selective_scan_fn` and
`causal_conv1d.causal_conv1d_fn`, and scatters the result. A gap needs no other kernel:

- scan: exp((1 + gap) dt A) h + dt B u is the scan with dt (1 + gap) in place of dt and
  B / (1 + gap) in place of B;
- convolution: a visit after g missing tokens stands g places further on in a longer sequence that
  is zero elsewhere. Gaps of W - 1 and more put every tap out of reach and count as W - 1, so the
  longer sequence has at most W K places.

Their backward functions are not public: backward runs forward again and differentiates that one
call. Inside an operator torch records nothing but a torch.autograd.Function, which both functions
are; so all the rest is differentiated by hand.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, W taps.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.selective.reference import ScanGradients

REQUIRED = {
    "mamba_ssm": "the package mamba-ssm is not installed",
    "selective_scan_cuda": (
        "mamba-ssm is installed without its Mamba-1 kernel; build it with "
        "MAMBA_KEEP_CUDA_BUILD=TRUE"
    ),
    "causal_conv1d": "the package causal-conv1d is not installed",
}


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the packages cannot run, or None. Looks for them without importing them."""
    if device.type != "cuda":
        return f"mamba-ssm runs on CUDA devices, not on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype} is not supported; mamba-ssm takes float32, bfloat16 and float16"
    for module, reason in REQUIRED.items():
        if find_spec(module) is None:
            return reason
    return None


def states_shape(batch: int, visits: int, dim: int, state: int) -> tuple[int, ...]:
    """Nothing is kept between forward and backward."""
    return (0,)


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    order: Tensor | None,
    gap: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and an empty tensor. Arguments as in `selective_scan`."""
    u_BDK, delta_BDK, B_BNK, C_BNK = (_take(x, order) for x in (u, delta, B, C))
    z_BDK = None if z is None else _take(z, order)
    if gap is not None:
        u_BDK, C_BNK = u_BDK.float(), C_BNK.float()
        z_BDK = None if z_BDK is None else z_BDK.float()
        delta_BDK, B_BNK, _ = _stretched(delta_BDK, B_BNK, delta_bias, delta_softplus, gap)
        delta_bias, delta_softplus = None, False
    with torch.no_grad():
        y = _scan(u_BDK, delta_BDK, A, B_BNK, C_BNK, D, z_BDK, delta_bias, delta_softplus)
    return _put(y, order, u), u.new_empty((0,), dtype=torch.float32)


def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    order: Tensor | None,
    gap: Tensor | None,
    states: Tensor,
) -> ScanGradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias; None where the argument is None."""
    u_BDK, delta_BDK, B_BNK, C_BNK, g_BDK = (_take(x, order) for x in (u, delta, B, C, grad_y))
    z_BDK = None if z is None else _take(z, order)
    if gap is None:
        gu, gdelta, gA, gB, gC, gD, gz, gbias = _gradients(
            g_BDK, u_BDK, delta_BDK, A, B_BNK, C_BNK, D, z_BDK, delta_bias, delta_softplus
        )
    else:
        u_BDK, C_BNK, g_BDK = u_BDK.float(), C_BNK.float(), g_BDK.float()
        z_BDK = None if z_BDK is None else z_BDK.float()
        dt, B_BNK, slope = _stretched(delta_BDK, B_BNK, delta_bias, delta_softplus, gap)
        gu, gdt, gA, gB, gC, gD, gz, _ = _gradients(
            g_BDK, u_BDK, dt, A, B_BNK, C_BNK, D, z_BDK, None, False
        )
        gdelta, gB = gdt * slope, gB / _scale(gap)
        gbias = None if delta_bias is None else gdelta.sum((0, 2))
    return (
        _put(gu, order, u),
        _put(gdelta, order, delta),
        gA,
        _put(gB, order, B),
        _put(gC, order, C),
        gD,
        None if gz is None or z is None else _put(gz, order, z),
        gbias,
    )


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> Tensor:
    """y (B, L, D) in x's dtype. Arguments as in `causal_conv`."""
    place = _places(gap, weight.shape[1])
    with torch.no_grad():
        y = _conv(_apart(_take(x, order), place, weight.shape[1]), weight, bias, activation)
    return _put(_together(y, place), order, x)


def conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    width = weight.shape[1]
    place = _places(gap, width)
    x_BDK, g_BDK = (_apart(_take(t, order), place, width) for t in (x, grad_y))
    x_BDK, weight, bias = _leaf(x_BDK), _leaf(weight), _optional_leaf(bias)
    with torch.enable_grad():
        y = _conv(x_BDK, weight, bias, activation)
    grads = torch.autograd.grad(y, [t for t in (x_BDK, weight, bias) if t is not None], g_BDK)
    gx = _put(_together(grads[0], place), order, x)
    return gx, grads[1], None if bias is None else grads[2]


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """y (B, D, K), by mamba-ssm; everything (B, ..., K) and contiguous."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(
        u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus
    )
    return y


def _gradients(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> ScanGradients:
    """Gradients of _scan."""
    u, delta, A, B, C = map(_leaf, (u, delta, A, B, C))
    D, z, delta_bias = map(_optional_leaf, (D, z, delta_bias))
    with torch.enable_grad():
        y = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    wanted = [x for x in (u, delta, A, B, C, D, z, delta_bias) if x is not None]
    gu, gdelta, gA, gB, gC, *rest = torch.autograd.grad(y, wanted, grad_y)
    others = iter(rest)
    gD = None if D is None else next(others)
    gz = None if z is None else next(others)
    gbias = None if delta_bias is None else next(others)
    return gu, gdelta, gA, gB, gC, gD, gz, gbias


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: bool) -> Tensor:
    """y (B, D, K), by causal-conv1d."""
    from causal_conv1d import causal_conv1d_fn

    y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu" if activation else None)
    return y


def _stretched(
    delta_BDK: Tensor, B_BNK: Tensor, bias: Tensor | None, softplus: bool, gap: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dt (1 + gap), B / (1 + gap) and the slope of the first in delta, all fp32."""
    raw = delta_BDK.float() if bias is None else delta_BDK.float() + bias[:, None]
    scale = _scale(gap)
    slope = torch.sigmoid(raw) * scale if softplus else scale.expand_as(raw)
    dt = F.softplus(raw) if softplus else raw
    return dt * scale, B_BNK.float() / scale, slope


def _scale(gap: Tensor) -> Tensor:
    return (1.0 + gap).view(-1, 1, gap.shape[-1])


def _places(gap: Tensor | None, width: int) -> Tensor | None:
    """Where visits stand in the longer sequence, (1 or B, 1, K)."""
    if gap is None:
        return None
    return ((gap.long().clamp(max=width - 1) + 1).cumsum(-1) - 1).view(-1, 1, gap.shape[-1])


def _apart(x_BDK: Tensor, place: Tensor | None, width: int) -> Tensor:
    """x with its visits at their places, (B, D, W K), zeros between."""
    if place is None:
        return x_BDK
    batch, dim, visits = x_BDK.shape
    longer = x_BDK.new_zeros(batch, dim, width * visits)
    return longer.scatter_(2, place.expand_as(x_BDK), x_BDK)


def _together(x: Tensor, place: Tensor | None) -> Tensor:
    """The inverse of _apart."""
    return x if place is None else x.gather(2, place.expand(*x.shape[:2], -1))


def _take(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, L, D) at the visited positions, (B, D, K), contiguous."""
    if order is not None:
        index = order.expand(x.shape[0], -1).unsqueeze(-1)
        x = x.gather(1, index.expand(-1, -1, x.shape[-1]))
    return x.transpose(1, 2).contiguous()


def _put(x_BDK: Tensor, order: Tensor | None, like: Tensor) -> Tensor:
    """The inverse of _take: shape and dtype of `like`, zero where nothing was visited."""
    x_BKD = x_BDK.transpose(1, 2).to(like.dtype)
    if order is None:
        return x_BKD.contiguous()
    index = order.expand(like.shape[0], -1).unsqueeze(-1)
    return like.new_zeros(like.shape).scatter_(1, index.expand_as(x_BKD), x_BKD)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().contiguous().requires_grad_()


def _optional_leaf(x: Tensor | None) -> Tensor | None:
    return None if x is None else _leaf(x)
