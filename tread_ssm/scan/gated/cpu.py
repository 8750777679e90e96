"""The gate and the norm by the compiled CPU kernels; compiled.py says how these are found.

Shape legend: B batch, L positions, G groups, C channels of a group.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from tread_ssm.scan import compiled
from tread_ssm.scan.inputs import GateInputs, Gradients

FAST_ON = ("cpu",)
INTERFACE_VERSION = 1  # as in csrc/kernels.cpp


class _GateArgs(ctypes.Structure):
    """GateArgs of csrc/gate.h, field by field."""

    _fields_ = compiled.fields(
        "y z grad_out weight out gy gz gweight parallel",
        "y_stride z_stride grad_stride rows groups channels threads",
    )


def fits(kernels: ctypes.CDLL) -> bool:
    """Whether a library was built from the sources that this file belongs to."""
    numbers = (INTERFACE_VERSION, ctypes.sizeof(_GateArgs))
    return compiled.agrees(kernels, "gate_interface_numbers", *numbers)


@cache
def library() -> compiled.Library | None:
    """(instruction set, kernels), or None."""
    return compiled.best(fits)


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot run there, or None."""
    return compiled.unavailable(device, dtype, library())


def gate_forward(x: GateInputs) -> Tensor:
    """out (B, L, G, C) in y's dtype."""
    dtype = x.y.dtype
    x = compiled.native(x, rows=2)
    out = torch.empty_like(x.y, memory_format=torch.contiguous_format)
    _call("gate_forward", x, out=out)
    return out.to(dtype)


def gate_backward(grad_out: Tensor, x: GateInputs) -> Gradients:
    """Gradients of y, z and weight."""
    dtype = x.y.dtype
    x, grad_out = compiled.native(x, rows=2), compiled.native_rows(grad_out)
    gy, gz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in x[:2])
    gweight = None if x.weight is None else torch.empty_like(x.weight)
    _call("gate_backward", x, grad_out.stride(1), grad_out=grad_out, gy=gy, gz=gz, gweight=gweight)
    return gy.to(dtype), gz.to(dtype), gweight


def _call(name: str, x: GateInputs, grad_stride: int = 0, **others: Tensor | None) -> None:
    batch, length, groups, channels = x.y.shape
    args = _GateArgs(
        parallel=compiled.openmp_entry(),
        y_stride=x.y.stride(1),
        z_stride=x.z.stride(1),
        grad_stride=grad_stride,
        rows=batch * length,
        groups=groups,
        channels=channels,
        threads=torch.get_num_threads(),
    )
    compiled.call(library(), name, args, x, y=x.y, z=x.z, weight=x.weight, **others)
