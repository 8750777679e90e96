"""The compiled CPU kernels (csrc/), called through ctypes.

They are built at install for several instruction sets; the best one that the processor has is
loaded on first use. float32 and bfloat16 run natively, float16 by way of float32; float64 is left
to the plain torch backends. State and sums are float32. Results do not depend on timing, only on
the shapes and on torch.get_num_threads().

Shape legend: B batch, L positions, K visits, D channels, N states, W taps.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from tread_ssm.scan.selective.reference import ScanGradients, check_gap, check_positions

CHUNK, STATE_PAD, CHANNEL_PAD = 64, 8, 16  # as in csrc/scan.h
INTERFACE_VERSION = 2  # as in csrc/kernels.cpp
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _ScanArgs(ctypes.Structure):
    """ScanArgs of csrc/scan.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("u", "delta", "B", "C", "z", "grad_y")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "order", "stretch", "states")),
        *((name, ctypes.c_void_p) for name in ("y", "gu", "gdelta", "gz", "gB", "gC")),
        *((name, ctypes.c_void_p) for name in ("gA", "gD", "gbias", "parallel")),
        *((name, ctypes.c_int64) for name in ("order_stride", "stretch_stride")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "visits", "dim", "state")),
        *((name, ctypes.c_int64) for name in ("softplus", "threads")),
    )


class _ConvArgs(ctypes.Structure):
    """ConvArgs of csrc/conv.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "grad_y", "weight", "bias", "order", "gap")),
        *((name, ctypes.c_void_p) for name in ("y", "gx", "gweight", "gbias", "parallel")),
        *((name, ctypes.c_int64) for name in ("order_stride", "gap_stride")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "visits", "dim", "width")),
        *((name, ctypes.c_int64) for name in ("activation", "threads")),
    )


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernels cannot run there, or None."""
    if device.type != "cpu":
        return "they run on the CPU only"
    if dtype not in DTYPES:
        return f"they are compiled for {', '.join(str(d)[6:] for d in DTYPES)}"
    if library() is None:
        return (
            "they were not built, or from other sources; install tread_ssm again "
            "(is there a C++ compiler?)"
        )
    return None


def states_shape(batch: int, visits: int, dim: int, state: int) -> tuple[int, ...]:
    """The state before each chunk, with N and D padded."""
    return (
        batch,
        (visits + CHUNK - 1) // CHUNK,
        (state + STATE_PAD - 1) // STATE_PAD * STATE_PAD,
        (dim + CHANNEL_PAD - 1) // CHANNEL_PAD * CHANNEL_PAD,
    )


def instruction_sets() -> tuple[str, ...]:
    """What this processor can run, best first; as torch sees it (ATEN_CPU_CAPABILITY included)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return ("avx512", "avx2", "base")
    return ("avx2", "base") if capability == "AVX2" else ("base",)


def load(level: str) -> ctypes.CDLL | None:
    """The kernels of one instruction set, or None where they were not built or do not load."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).parents[1] / f"_kernels_{level}{suffix}"
        if path.exists():
            try:
                kernels = ctypes.CDLL(str(path))
            except OSError:  # built for another system
                return None
            return kernels if fits(kernels) else None
    return None


def fits(kernels: ctypes.CDLL) -> bool:
    """Whether a library was built from the sources that this file belongs to; any other would
    write outside the tensors."""
    expected = (
        INTERFACE_VERSION,
        ctypes.sizeof(_ScanArgs),
        ctypes.sizeof(_ConvArgs),
        CHUNK,
        STATE_PAD,
        CHANNEL_PAD,
    )
    numbers = (ctypes.c_int64 * len(expected))()
    try:
        kernels.interface_numbers(numbers)
    except AttributeError:
        return False
    return tuple(numbers) == expected


@cache
def library() -> tuple[str, ctypes.CDLL] | None:
    """(instruction set, kernels): the best that were built and that can run, or None."""
    for level in instruction_sets():
        kernels = load(level)
        if kernels is not None:
            return level, kernels
    return None


def exp2(x: Tensor, out: Tensor) -> Tensor:
    """2^x as the kernels compute it, on one thread; x and out contiguous float32, 16 m elements."""
    found = library()
    fits = all(t.dtype == torch.float32 and t.is_contiguous() for t in (x, out))
    if found is None or not fits or x.numel() != out.numel() or x.numel() % CHANNEL_PAD:
        raise ValueError("exp2: kernels not built, or x and out are not as the docstring says.")
    count = ctypes.c_int64(x.numel())
    found[1].exp2_array(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr()), count)
    return out


@cache
def _openmp_entry() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch loaded; None: own threads."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value


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
    """y (B, L, D) in u's dtype, and the chunk states. Arguments as in `selective_scan`."""
    dtype = u.dtype
    u, delta, B, C = (_native(x) for x in (u, delta, B, C))
    z = None if z is None else _native(z)
    args, _keep = _scan_args(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, gap)
    # Zeros: not every instruction set writes the padding, and an operator returns no garbage.
    states = u.new_zeros(states_shape(u.shape[0], args.visits, *A.shape), dtype=torch.float32)
    y = _output(u, args.visits)
    args.y, args.states = y.data_ptr(), states.data_ptr()
    _call("scan_forward", args, u, order)
    return y.to(dtype), states


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
    """As reference.scan_backward, from the chunk states that the forward kept."""
    dtype = u.dtype
    u, delta, B, C = (_native(x) for x in (u, delta, B, C))
    z = None if z is None else _native(z)
    grad_y = _native(grad_y)
    args, _keep = _scan_args(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, gap)
    gu, gdelta, gB, gC = (_output(x, args.visits) for x in (u, delta, B, C))
    gz = None if z is None else _output(z, args.visits)
    gA = _sums_like(A)
    gD, gbias = (None if x is None else _sums_like(x) for x in (D, delta_bias))
    args.grad_y, args.states = grad_y.data_ptr(), states.data_ptr()
    args.gu, args.gdelta, args.gz, args.gB, args.gC, args.gA, args.gD, args.gbias = (
        _address(x) for x in (gu, gdelta, gz, gB, gC, gA, gD, gbias)
    )
    _call("scan_backward", args, u, order)
    gu, gdelta, gB, gC = (x.to(dtype) for x in (gu, gdelta, gB, gC))
    return gu, gdelta, gA, gB, gC, gD, None if gz is None else gz.to(dtype), gbias


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> Tensor:
    """(B, L, D) in x's dtype. Arguments as in `causal_conv`."""
    dtype = x.dtype
    x = _native(x)
    args, _keep = _conv_args(x, weight, bias, order, gap, activation)
    y = _output(x, args.visits)
    args.y = y.data_ptr()
    _call("conv_forward", args, x, order)
    return y.to(dtype)


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
    dtype = x.dtype
    grad_y, x = _native(grad_y), _native(x)
    args, _keep = _conv_args(x, weight, bias, order, gap, activation)
    gx = _output(x, args.visits)
    gweight = _sums_like(weight)
    gbias = None if bias is None else _sums_like(bias)
    args.grad_y, args.gx = grad_y.data_ptr(), gx.data_ptr()
    args.gweight, args.gbias = gweight.data_ptr(), _address(gbias)
    _call("conv_backward", args, x, order)
    return gx.to(dtype), gweight, gbias


def _native(x: Tensor) -> Tensor:
    """Contiguous, and in a dtype that the kernels read."""
    return (x.float() if x.dtype == torch.float16 else x).contiguous()


def _output(like: Tensor, visits: int) -> Tensor:
    """Contiguous; zeros where some positions are never visited."""
    new = torch.empty if visits == like.shape[1] else torch.zeros
    return new(like.shape, dtype=like.dtype, device="cpu")


def _sums_like(x: Tensor) -> Tensor:
    # The kernels write floats, whatever torch.set_default_dtype says.
    return torch.empty(x.shape, dtype=torch.float32, device="cpu")


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _scan_args(
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
) -> tuple[_ScanArgs, list[Tensor | None]]:
    """The argument block without outputs, and the tensors that must outlive the call."""
    check_gap(gap)
    stretch = None if gap is None else (1 + gap).to(torch.float32)
    keep = [
        None if x is None else x.contiguous()
        for x in (u, delta, B, C, z, A, D, delta_bias, order, stretch)
    ]
    names = ("u", "delta", "B", "C", "z", "A", "D", "bias", "order", "stretch")
    args = _ScanArgs(**{name: _address(x) for name, x in zip(names, keep, strict=True)})
    args.batch, args.length, args.dim = u.shape
    args.state = A.shape[1]
    args.visits = u.shape[1] if order is None else order.shape[-1]
    args.order_stride, args.stretch_stride = _row_stride(order), _row_stride(gap)
    args.softplus, args.threads = delta_softplus, torch.get_num_threads()
    args.parallel = _openmp_entry()
    return args, keep


def _conv_args(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    gap: Tensor | None,
    activation: bool,
) -> tuple[_ConvArgs, list[Tensor | None]]:
    """The argument block without outputs, and the tensors that must outlive the call."""
    check_gap(gap)
    keep = [None if t is None else t.contiguous() for t in (x, weight, bias, order, gap)]
    names = ("x", "weight", "bias", "order", "gap")
    args = _ConvArgs(**{name: _address(t) for name, t in zip(names, keep, strict=True)})
    args.batch, args.length, args.dim = x.shape
    args.width = weight.shape[1]
    args.visits = x.shape[1] if order is None else order.shape[-1]
    args.order_stride, args.gap_stride = _row_stride(order), _row_stride(gap)
    args.activation, args.threads = activation, torch.get_num_threads()
    args.parallel = _openmp_entry()
    return args, keep


def _row_stride(x: Tensor | None) -> int:
    """Elements from one sample's row to the next; 0 where all share one."""
    return x.shape[1] if x is not None and x.ndim == 2 else 0


def _call(name: str, args: ctypes.Structure, x: Tensor, order: Tensor | None) -> None:
    found = library()
    assert found is not None
    error = getattr(found[1], name)(ctypes.byref(args), x.dtype == torch.bfloat16)
    if error == 3:
        raise MemoryError(f"tread_ssm {name}: no memory for its buffers.")
    if error and order is not None:
        check_positions(order.expand(x.shape[0], -1), x.shape[1])  # says what is wrong
    if error:
        raise RuntimeError(f"tread_ssm {name}: error {error}.")
