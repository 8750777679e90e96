"""The compiled CPU kernels (csrc/): found, checked and called through ctypes, for any operation.

They are built at install for several instruction sets; the best one that the processor has is
loaded on first use. float32 and bfloat16 run natively, float16 by way of float32; float64 is left
to the plain torch backends. State and sums are float32. Results do not depend on timing, only on
the shapes and on torch.get_num_threads().
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tread_ssm.scan.visits import check_positions, rows_in_place

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Library = tuple[str, ctypes.CDLL]
"""(instruction set, kernels)"""


def unavailable(device: torch.device, dtype: torch.dtype, library: Library | None) -> str | None:
    """Why the compiled kernels cannot run there, or None."""
    if device.type != "cpu":
        return "they run on the CPU only"
    if dtype not in DTYPES:
        return f"they are compiled for {', '.join(str(d)[6:] for d in DTYPES)}"
    if library is None:
        return (
            "they were not built, or from other sources; install tread_ssm again "
            "(is there a C++ compiler?)"
        )
    return None


def instruction_sets() -> tuple[str, ...]:
    """What this processor can run, best first; as torch sees it (ATEN_CPU_CAPABILITY included)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return ("avx512", "avx2", "base")
    return ("avx2", "base") if capability == "AVX2" else ("base",)


def load(level: str, fits: Callable[[ctypes.CDLL], bool]) -> ctypes.CDLL | None:
    """The kernels of one instruction set, or None where they were not built or do not load.

    `fits` says whether a library was built from the sources that an operation's host code belongs
    to; any other would write outside the tensors.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).parent / f"_kernels_{level}{suffix}"
        if path.exists():
            try:
                kernels = ctypes.CDLL(str(path))
            except OSError:  # built for another system
                return None
            return kernels if fits(kernels) else None
    return None


def agrees(kernels: ctypes.CDLL, function: str, *expected: int) -> bool:
    """Whether a library tells the numbers that an operation's host code expects of it.

    Args:
        kernels: The library.
        function: Of the library, which writes them; libraries of other sources may lack it.
        expected: A version, sizes of argument blocks, constants.
    """
    numbers = (ctypes.c_int64 * len(expected))()
    try:
        getattr(kernels, function)(numbers)
    except AttributeError:
        return False
    return tuple(numbers) == expected


def best(fits: Callable[[ctypes.CDLL], bool]) -> Library | None:
    """The best kernels that were built and that can run, or None."""
    for level in instruction_sets():
        kernels = load(level, fits)
        if kernels is not None:
            return level, kernels
    return None


@cache
def openmp_entry() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch loaded; None: own threads."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value


def fields(pointers: str, integers: str) -> tuple[tuple[str, type], ...]:
    """_fields_ of a kernel's argument block: pointers first, then int64 numbers."""
    return (
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int64) for name in integers.split()),
    )


def native(inputs: Any, rows: int = 0) -> Any:
    """A tuple of inputs, contiguous and in dtypes that the kernels read; its first `rows` tensors
    may be slices of wider rows."""
    makers = (native_rows if i < rows else native_tensor for i in range(len(inputs)))
    pairs = zip(makers, inputs, strict=True)
    return type(inputs)(*(make(x) if isinstance(x, Tensor) else x for make, x in pairs))


def native_tensor(x: Tensor) -> Tensor:
    """One tensor likewise."""
    return (x.float() if x.dtype == torch.float16 else x).contiguous()


def native_rows(x: Tensor) -> Tensor:
    """Likewise, but a tensor that is contiguous except for the distance between positions stays in
    place: a slice of wider rows."""
    x = x.float() if x.dtype == torch.float16 else x
    return rows_in_place(x)


def call(
    library: Library | None,
    name: str,
    args: ctypes.Structure,
    inputs: Any,
    **tensors: Tensor | None,
) -> None:
    """Run one kernel. Its argument block `args` holds the numbers and gets the tensors' addresses.

    `inputs` are native, see above; `tensors` are those of them and of the outputs by the names of
    the block's pointers, None where there is none.

    Raises:
        ValueError: Tensors that the kernels cannot read, or an order with bad positions.
        MemoryError: No memory for the kernel's buffers.
    """
    x, order = inputs[0], getattr(inputs, "order", None)
    reason = unavailable(x.device, x.dtype, library)
    if reason or library is None:
        raise ValueError(f"{name}: the CPU kernels cannot run {x.dtype} on {x.device}: {reason}")
    for field, tensor in tensors.items():
        if tensor is not None:
            setattr(args, field, tensor.data_ptr())
    error = getattr(library[1], name)(ctypes.byref(args), x.dtype == torch.bfloat16)
    if error == 3:
        raise MemoryError(f"tread_ssm {name}: no memory for its buffers.")
    if error and order is not None:
        check_positions(order.expand(x.shape[0], -1), x.shape[1])  # says what is wrong
    if error:
        raise RuntimeError(f"tread_ssm {name}: error {error}.")
