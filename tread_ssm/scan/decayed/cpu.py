"""The decayed product by the compiled CPU kernels; compiled.py says how these are found.

Shape legend: B batch, L positions, K visits, G groups, N states, H heads, P channels of a head.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from tread_ssm.scan import compiled
from tread_ssm.scan.inputs import Gradients, SSDInputs
from tread_ssm.scan.visits import check_gap, n_visits, output_like, row_stride

FAST_ON = ("cpu",)
FUSES_TERMS = True
CHUNK, PAD = 64, 16  # as in csrc/ssd.h and csrc/product.h
INTERFACE_VERSION = 2  # as in csrc/kernels.cpp


class _SsdArgs(ctypes.Structure):
    """SsdArgs of csrc/ssd.h, field by field."""

    _fields_ = compiled.fields(
        "q k v grad_y log_decay scale diagonal order stretch states "
        "y gq gk gv glog_decay gscale gdiagonal parallel",
        "q_stride k_stride v_stride grad_y_stride order_stride stretch_stride "
        "batch length visits groups state heads channels threads",
    )


def fits(kernels: ctypes.CDLL) -> bool:
    """Whether a library was built from the sources that this file belongs to."""
    numbers = (INTERFACE_VERSION, ctypes.sizeof(_SsdArgs), CHUNK, PAD)
    return compiled.agrees(kernels, "ssd_interface_numbers", *numbers)


@cache
def library() -> compiled.Library | None:
    """(instruction set, kernels), or None."""
    return compiled.best(fits)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot run there, or None."""
    return compiled.unavailable(device, dtype, library())


def ssd_states_shape(x: SSDInputs) -> tuple[int, ...]:
    """The state after each chunk but the last, with N and P padded."""
    batch, _, heads, channels = x.v.shape
    chunks = -(-n_visits(x.v, x.order) // CHUNK)
    return (batch, chunks - 1, heads, _padded(x.q.shape[3]), _padded(channels))


def ssd_forward(x: SSDInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in v's dtype, and the chunk states."""
    dtype = x.v.dtype
    x = compiled.native(x, rows=3)
    states = x.v.new_empty(ssd_states_shape(x), dtype=torch.float32)
    y = output_like(x.v, n_visits(x.v, x.order))
    _call("ssd_forward", x, y=y, states=states)
    return y.to(dtype), states


def ssd_backward(grad_y: Tensor, x: SSDInputs, states: Tensor) -> Gradients:
    """Gradients of all floating inputs, from the chunk states that the forward kept."""
    dtype = x.v.dtype
    x, grad_y = compiled.native(x, rows=3), compiled.native_rows(grad_y)
    states = states.contiguous()
    visits = n_visits(x.v, x.order)
    gq, gk, gv, glog = (output_like(t, visits) for t in x[:4])
    gscale, gdiagonal = (
        None if t is None else output_like(t, visits) for t in (x.scale, x.diagonal)
    )
    _call(
        "ssd_backward", x, grad_y.stride(1),
        grad_y=grad_y, states=states, gq=gq, gk=gk, gv=gv, glog_decay=glog,
        gscale=gscale, gdiagonal=gdiagonal,
    )  # fmt: skip
    return gq.to(dtype), gk.to(dtype), gv.to(dtype), glog, gscale, gdiagonal


def _padded(n: int) -> int:
    return -(-n // PAD) * PAD


def _call(name: str, x: SSDInputs, grad_y_stride: int = 0, **others: Tensor | None) -> None:
    q, k, v, log_decay, order, gap, scale, diagonal = x
    check_gap(gap)
    stretch = None if gap is None else gap.to(torch.float32) + 1
    batch, length, heads, channels = v.shape
    args = _SsdArgs(
        parallel=compiled.openmp_entry(),
        q_stride=q.stride(1),
        k_stride=k.stride(1),
        v_stride=v.stride(1),
        grad_y_stride=grad_y_stride,
        order_stride=row_stride(order),
        stretch_stride=row_stride(gap),
        batch=batch,
        length=length,
        visits=n_visits(v, order),
        groups=q.shape[2],
        state=q.shape[3],
        heads=heads,
        channels=channels,
        threads=torch.get_num_threads(),
    )
    compiled.call(
        library(), name, args, x,
        q=q, k=k, v=v, log_decay=log_decay, scale=scale, diagonal=diagonal, order=order,
        stretch=stretch, **others,
    )  # fmt: skip
