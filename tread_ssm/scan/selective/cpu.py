"""The scan and the convolution by the compiled CPU kernels; compiled.py says how these are found.

Shape legend: B batch, L positions, K visits, D channels, N states, W taps.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from tread_ssm.scan import compiled
from tread_ssm.scan.inputs import ConvInputs, Gradients, ScanInputs
from tread_ssm.scan.visits import check_gap, n_visits, output_like, row_stride

FAST_ON = ("cpu",)
CHUNK, STATE_PAD, CHANNEL_PAD = 64, 8, 16  # as in csrc/scan.h
INTERFACE_VERSION = 3  # as in csrc/kernels.cpp


class _ScanArgs(ctypes.Structure):
    """ScanArgs of csrc/scan.h, field by field."""

    _fields_ = compiled.fields(
        "u delta B C z grad_y A D bias order stretch states "
        "y gu gdelta gz gB gC gA gD gbias parallel",
        "order_stride stretch_stride batch length visits dim state softplus threads",
    )


class _ConvArgs(ctypes.Structure):
    """ConvArgs of csrc/conv.h, field by field."""

    _fields_ = compiled.fields(
        "x grad_y weight bias order gap y gx gweight gbias parallel",
        "x_stride order_stride gap_stride batch length visits dim width activation threads",
    )


def fits(kernels: ctypes.CDLL) -> bool:
    """Whether a library was built from the sources that this file belongs to."""
    sizes = (ctypes.sizeof(_ScanArgs), ctypes.sizeof(_ConvArgs))
    numbers = (INTERFACE_VERSION, *sizes, CHUNK, STATE_PAD, CHANNEL_PAD)
    return compiled.agrees(kernels, "interface_numbers", *numbers)


@cache
def library() -> compiled.Library | None:
    """(instruction set, kernels), or None."""
    return compiled.best(fits)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot run there, or None."""
    return compiled.unavailable(device, dtype, library())


def exp2(x: Tensor, out: Tensor) -> Tensor:
    """2^x as the kernels compute it, on one thread; x and out contiguous float32, 16 m elements."""
    found = library()
    fit = all(t.dtype == torch.float32 and t.is_contiguous() for t in (x, out))
    if found is None or not fit or x.numel() != out.numel() or x.numel() % CHANNEL_PAD:
        raise ValueError("exp2: kernels not built, or x and out are not as the docstring says.")
    count = ctypes.c_int64(x.numel())
    found[1].exp2_array(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr()), count)
    return out


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """The state before each chunk, with N and D padded."""
    dim, state = x.A.shape
    return (
        x.u.shape[0],
        -(-n_visits(x.u, x.order) // CHUNK),
        -(-state // STATE_PAD) * STATE_PAD,
        -(-dim // CHANNEL_PAD) * CHANNEL_PAD,
    )


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype, and the chunk states."""
    dtype = x.u.dtype
    x = compiled.native(x)
    # Zeros: not every instruction set writes the padding, and an operator returns no garbage.
    states = x.u.new_zeros(scan_states_shape(x), dtype=torch.float32)
    y = output_like(x.u, n_visits(x.u, x.order))
    _call_scan("scan_forward", x, y=y, states=states)
    return y.to(dtype), states


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """As reference.scan_backward, from the chunk states that the forward kept."""
    dtype = x.u.dtype
    x, grad_y, states = compiled.native(x), compiled.native_tensor(grad_y), states.contiguous()
    visits = n_visits(x.u, x.order)
    gu, gdelta, gB, gC = (output_like(t, visits) for t in (x.u, x.delta, x.B, x.C))
    gz = None if x.z is None else output_like(x.z, visits)
    gA = torch.empty_like(x.A)
    gD, gbias = (None if t is None else torch.empty_like(t) for t in (x.D, x.delta_bias))
    _call_scan(
        "scan_backward", x, grad_y=grad_y, states=states,
        gu=gu, gdelta=gdelta, gz=gz, gB=gB, gC=gC, gA=gA, gD=gD, gbias=gbias,
    )  # fmt: skip
    gu, gdelta, gB, gC = (t.to(dtype) for t in (gu, gdelta, gB, gC))
    return gu, gdelta, gA, gB, gC, gD, None if gz is None else gz.to(dtype), gbias


def conv_forward(inputs: ConvInputs) -> Tensor:
    """y (B, L, D) in x's dtype."""
    dtype = inputs.x.dtype
    inputs = compiled.native(inputs, rows=1)  # a part of in_proj's output
    y = output_like(inputs.x, n_visits(inputs.x, inputs.order))
    _call_conv("conv_forward", inputs, y=y)
    return y.to(dtype)


def conv_backward(grad_y: Tensor, inputs: ConvInputs) -> Gradients:
    """Gradients of x, weight and bias."""
    dtype = inputs.x.dtype
    inputs, grad_y = compiled.native(inputs, rows=1), compiled.native_tensor(grad_y)
    gx = output_like(inputs.x, n_visits(inputs.x, inputs.order))
    gweight = torch.empty_like(inputs.weight)
    gbias = None if inputs.bias is None else torch.empty_like(inputs.bias)
    _call_conv("conv_backward", inputs, grad_y=grad_y, gx=gx, gweight=gweight, gbias=gbias)
    return gx.to(dtype), gweight, gbias


def _call_scan(name: str, x: ScanInputs, **others: Tensor | None) -> None:
    u, delta, A, B, C, D, z, bias, order, gap, softplus = x
    check_gap(gap)
    stretch = None if gap is None else gap.to(torch.float32) + 1
    batch, length, dim = u.shape
    args = _ScanArgs(
        parallel=compiled.openmp_entry(),
        order_stride=row_stride(order),
        stretch_stride=row_stride(gap),
        batch=batch,
        length=length,
        visits=n_visits(u, order),
        dim=dim,
        state=A.shape[1],
        softplus=softplus,
        threads=torch.get_num_threads(),
    )
    compiled.call(
        library(), name, args, x,
        u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, bias=bias, order=order, stretch=stretch,
        **others,
    )  # fmt: skip


def _call_conv(name: str, inputs: ConvInputs, **others: Tensor | None) -> None:
    x, weight, bias, order, gap, activation = inputs
    check_gap(gap)
    batch, length, dim = x.shape
    args = _ConvArgs(
        parallel=compiled.openmp_entry(),
        x_stride=x.stride(1),
        order_stride=row_stride(order),
        gap_stride=row_stride(gap),
        batch=batch,
        length=length,
        visits=n_visits(x, order),
        dim=dim,
        width=weight.shape[1],
        activation=activation,
        threads=torch.get_num_threads(),
    )
    compiled.call(
        library(), name, args, inputs,
        x=x, weight=weight, bias=bias, order=order, gap=gap, **others,
    )  # fmt: skip
