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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tread_ssm.scan.inputs import ConvInputs, Gradients, ScanInputs
from tread_ssm.scan.selective.gpu import dtype_unavailable

FAST_ON = ("cuda",)
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
    if reason := dtype_unavailable(dtype):
        return reason
    for module, reason in REQUIRED.items():
        if find_spec(module) is None:
            return reason
    return None


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """Nothing is kept between forward and backward."""
    return (0,)


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and an empty tensor."""
    visits = _in_visiting_order(x)
    if x.gap is not None:
        visits, _ = _stretched(visits, x.gap)
    with torch.no_grad():
        y = _scan(visits)
    return _put(y, x.order, x.u), x.u.new_empty(0, dtype=torch.float32)


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias."""
    visits, g_BDK = _in_visiting_order(x), _take(grad_y, x.order)
    if x.gap is None:
        gu, gdelta, gA, gB, gC, gD, gz, gbias = _gradients(g_BDK, visits)
    else:
        visits, slope = _stretched(visits, x.gap)
        gu, gdt, gA, gB, gC, gD, gz, _ = _gradients(g_BDK.float(), visits)
        gdelta, gB = gdt * slope, gB / _scale(x.gap)
        gbias = None if x.delta_bias is None else gdelta.sum((0, 2))
    return (
        _put(gu, x.order, x.u),
        _put(gdelta, x.order, x.delta),
        gA,
        _put(gB, x.order, x.B),
        _put(gC, x.order, x.C),
        gD,
        None if x.z is None else _put(gz, x.order, x.z),
        gbias,
    )


def conv_forward(inputs: ConvInputs) -> Tensor:
    """y (B, L, D) in x's dtype."""
    x, weight, bias, order, gap, activation = inputs
    place = _places(gap, weight.shape[1])
    with torch.no_grad():
        y = _conv(_apart(_take(x, order), place, weight.shape[1]), weight, bias, activation)
    return _put(_together(y, place), order, x)


def conv_backward(grad_y: Tensor, inputs: ConvInputs) -> Gradients:
    """Gradients of x, weight and bias."""
    x, weight, bias, order, gap, activation = inputs
    width = weight.shape[1]
    place = _places(gap, width)
    x_BDK, g_BDK = (_apart(_take(t, order), place, width) for t in (x, grad_y))
    x_BDK, weight, bias = leaves = _leaves(x_BDK, weight, bias)
    with torch.enable_grad():
        y = _conv(x_BDK, weight, bias, activation)
    gx, gweight, gbias = _differentiated(y, leaves, g_BDK)
    return _put(_together(gx, place), order, x), gweight, gbias


def _in_visiting_order(x: ScanInputs) -> ScanInputs:
    """The inputs as mamba-ssm takes them: (B, ..., K), contiguous, without order and gap."""
    u, delta, B, C = (_take(t, x.order) for t in (x.u, x.delta, x.B, x.C))
    z = None if x.z is None else _take(x.z, x.order)
    return x._replace(u=u, delta=delta, B=B, C=C, z=z, order=None, gap=None)


def _scan(x: ScanInputs) -> Tensor:
    """y (B, D, K), by mamba-ssm."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(
        x.u, x.delta, x.A, x.B, x.C,
        D=x.D, z=x.z, delta_bias=x.delta_bias, delta_softplus=x.delta_softplus,
    )  # fmt: skip
    return y


def _gradients(grad_y: Tensor, x: ScanInputs) -> list[Any]:
    """Gradients of _scan."""
    u, delta, A, B, C, D, z, delta_bias = leaves = _leaves(*x[:8])
    with torch.enable_grad():
        y = _scan(ScanInputs(u, delta, A, B, C, D, z, delta_bias, None, None, x.delta_softplus))
    return _differentiated(y, leaves, grad_y)


def _differentiated(y: Tensor, leaves: list[Any], grad_y: Tensor) -> list[Any]:
    """The gradient of each leaf; None where the leaf is None."""
    found = iter(torch.autograd.grad(y, [x for x in leaves if x is not None], grad_y))
    return [None if x is None else next(found) for x in leaves]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: bool) -> Tensor:
    """y (B, D, K), by causal-conv1d."""
    from causal_conv1d import causal_conv1d_fn

    y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu" if activation else None)
    return y


def _stretched(x: ScanInputs, gap: Tensor) -> tuple[ScanInputs, Tensor]:
    """The inputs with dt (1 + gap) and B / (1 + gap), and the slope of the first in delta; fp32."""
    raw = x.delta.float() if x.delta_bias is None else x.delta.float() + x.delta_bias[:, None]
    scale = _scale(gap)
    slope = torch.sigmoid(raw) * scale if x.delta_softplus else scale.expand_as(raw)
    dt = F.softplus(raw) if x.delta_softplus else raw
    inputs = x._replace(
        u=x.u.float(),
        delta=dt * scale,
        B=x.B.float() / scale,
        C=x.C.float(),
        z=None if x.z is None else x.z.float(),
        delta_bias=None,
        delta_softplus=False,
    )
    return inputs, slope


def _scale(gap: Tensor) -> Tensor:
    return (1 + gap.float()).view(-1, 1, gap.shape[-1])


def _places(gap: Tensor | None, width: int) -> Tensor | None:
    """Where visits stand in the longer sequence, (1 or B, 1, K)."""
    if gap is None:
        return None
    return ((gap.clamp(max=width - 1) + 1).cumsum(-1) - 1).view(-1, 1, gap.shape[-1])


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


def _leaves(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.detach().contiguous().requires_grad_() for x in tensors]
