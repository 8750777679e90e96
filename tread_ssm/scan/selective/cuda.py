"""The CUDA backend: kernels in CUDA C++ (csrc/scan.cu), compiled when first used (nvrtc.py).

Compiled and counted for sm_80, sm_90 and sm_100, and run on the CPU through a shim; never yet run
on a GPU. So Triton comes first, and this one runs where it is asked for. The convolution is
Triton's where that runs, else the reference's.

Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, P channel blocks.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from tread_ssm.scan.inputs import ConvInputs, Gradients, ScanInputs
from tread_ssm.scan.selective import gpu, nvrtc, reference, triton
from tread_ssm.scan.visits import contiguous, n_visits, output_like, row_stride

FAST_ON = ("cuda",)
SOURCES = ("cuda_primitives.h", "cuda_common.h", "scan.cu")
THREADS = 128
CHUNK = 28
"""Visits per state that forward keeps for backward: what lets three blocks of backward share a
multiprocessor's 228 KB."""
PART = 4
"""Visits whose states backward holds in registers; divides CHUNK."""
STATES = 16
"""States of a thread."""
ELEMENT = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "the CUDA kernels need an NVIDIA GPU"
    if reason := gpu.dtype_unavailable(dtype):
        return reason
    try:
        nvrtc.library()
    except OSError as error:
        return str(error)
    if reason := gpu.capability_unavailable(device):
        return reason
    major, minor = torch.cuda.get_device_capability(device)
    if nvrtc.architecture(10 * major + minor) is None:
        return (
            f"compute capability {major}.{minor} is newer than the NVRTC of CUDA "
            f"{torch.version.cuda}; a torch for a newer CUDA brings one that knows it"
        )
    return None


def scan_states_shape(x: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, D): the state before every CHUNK-th visit."""
    return gpu.kept_states_shape(x, CHUNK)


@cache
def source() -> str:
    """The kernels' text."""
    folder = Path(__file__).parents[1] / "csrc"
    return "".join((folder / name).read_text() for name in SOURCES)


def options(dtype: torch.dtype, state: int, softplus: bool, gate: bool) -> tuple[str, ...]:
    """The macros of scan.cu."""
    values = {
        "ELEMENT": ELEMENT[dtype],
        "LANES": lanes(state),
        "SOFTPLUS": int(softplus),
        "GATE": int(gate),
        "THREADS": THREADS,
        "CHUNK": CHUNK,
        "PART": PART,
    }
    return tuple(f"-D{name}={value}" for name, value in values.items())


def lanes(state: int) -> int:
    """Threads of a channel: 1, 2 or 4."""
    return 1 if state <= STATES else 2 if state <= 2 * STATES else 4


def scan_forward(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the kept states."""
    _check_size(x.u)
    x = contiguous(x)
    y = output_like(x.u, n_visits(x.u, x.order))
    states = torch.empty(scan_states_shape(x), device=x.u.device, dtype=torch.float32)
    nvrtc.launch(
        source(),
        "scan_forward",
        options(x.u.dtype, x.A.shape[1], x.delta_softplus, x.z is not None),
        x.u.shape[0] * _blocks(x),
        THREADS,
        0,
        (*_tensors(x), y, states, *_sizes(x)),
    )
    return y, states


def scan_backward(grad_y: Tensor, x: ScanInputs, states: Tensor) -> Gradients:
    """Gradients of u, delta, A, B, C, D, z and delta_bias."""
    _check_size(x.u)
    x, grad_y, states = contiguous(x), grad_y.contiguous(), states.contiguous()
    grads = gpu.ScanGradients.empty(x, _blocks(x))
    slots = CHUNK // PART + 1  # see Slot in scan.cu
    nvrtc.launch(
        source(),
        "scan_backward",
        options(x.u.dtype, x.A.shape[1], x.delta_softplus, x.z is not None),
        x.u.shape[0] * _blocks(x),
        THREADS,
        slots * THREADS * STATES * 4,
        (grad_y, *_tensors(x), states, *grads.buffers(), *_sizes(x)),
    )
    return grads.summed(x)


def conv_forward(inputs: ConvInputs) -> Tensor:
    """y (B, L, D) in x's dtype."""
    y: Tensor = _conv(inputs.x).conv_forward(inputs)
    return y


def conv_backward(grad_y: Tensor, inputs: ConvInputs) -> Gradients:
    """Gradients of x, weight and bias."""
    grads: Gradients = _conv(inputs.x).conv_backward(grad_y, inputs)
    return grads


def _tensors(x: ScanInputs) -> tuple[Tensor | None, ...]:
    return (x.u, x.delta, x.A, x.B, x.C, x.D, x.z, x.delta_bias, x.order, x.gap)


def _sizes(x: ScanInputs) -> tuple[int, ...]:
    """visits, length, dim, state and the strides of order and gap."""
    visits, (_, length, dim) = n_visits(x.u, x.order), x.u.shape
    return (visits, length, dim, x.A.shape[1], row_stride(x.order), row_stride(x.gap))


def _conv(x: Tensor) -> ModuleType:
    return reference if triton.unavailable(x.device, x.dtype) else triton


def _check_size(u: Tensor) -> None:
    """The kernels count a sample's bytes in 32 bits."""
    size = u[0].numel() * u.element_size()
    if size >= 2**32:
        raise ValueError(
            f"selective_scan: u has {size} bytes a sample; backend 'cuda' takes less than 2^32."
        )


def _blocks(x: ScanInputs) -> int:
    dim, state = x.A.shape
    return -(-dim * lanes(state) // THREADS)
