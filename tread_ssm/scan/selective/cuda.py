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

from tread_ssm.scan.selective import nvrtc, reference, triton
from tread_ssm.scan.selective.reference import ScanGradients

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
    if dtype not in ELEMENT:
        return f"{dtype} is not supported; the kernels take float32, bfloat16 and float16"
    try:
        nvrtc.library()
    except OSError as error:
        return str(error)
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}; the kernels need 8.0 or higher"
    if nvrtc.architecture(10 * major + minor) is None:
        return (
            f"compute capability {major}.{minor} is newer than the NVRTC of CUDA "
            f"{torch.version.cuda}; a torch for a newer CUDA brings one that knows it"
        )
    return None


def states_shape(batch: int, visits: int, dim: int, state: int) -> tuple[int, ...]:
    """(B, chunks, N, D): the state before every CHUNK-th visit."""
    return (batch, -(-visits // CHUNK), state, dim)


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
    """y (B, L, D) and the kept states. Arguments as in `selective_scan`."""
    _check_size(u)
    u, delta, A, B, C = (x.contiguous() for x in (u, delta, A, B, C))
    D, z, delta_bias, order, gap = map(_contiguous, (D, z, delta_bias, order, gap))
    (batch, length, dim), state = u.shape, A.shape[1]
    visits = length if order is None else order.shape[-1]
    y = torch.empty_like(u) if visits == length else torch.zeros_like(u)
    shape = states_shape(batch, visits, dim, state)
    states = torch.empty(shape, device=u.device, dtype=torch.float32)
    nvrtc.launch(
        source(),
        "scan_forward",
        options(u.dtype, state, delta_softplus, z is not None),
        batch * _blocks(dim, state),
        THREADS,
        0,
        (u, delta, A, B, C, D, z, delta_bias, order, gap, y, states,
         visits, length, dim, state, _stride(order), _stride(gap)),
    )  # fmt: skip
    return y, states


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
    _check_size(u)
    grad_y, u, delta, A, B, C, states = (
        x.contiguous() for x in (grad_y, u, delta, A, B, C, states)
    )
    D, z, delta_bias, order, gap = map(_contiguous, (D, z, delta_bias, order, gap))
    (batch, length, dim), state = u.shape, A.shape[1]
    visits = length if order is None else order.shape[-1]
    blocks = _blocks(dim, state)

    def wide(*shape: int) -> Tensor:
        return torch.empty(shape, device=u.device, dtype=torch.float32)

    fresh = torch.empty_like if visits == length else torch.zeros_like
    grad_u, grad_delta = fresh(u), fresh(delta)
    grad_z = None if z is None else fresh(z)
    part_A = wide(batch, state, dim)
    part_B, part_C = wide(batch, blocks, visits, state), wide(batch, blocks, visits, state)
    part_D = None if D is None else wide(batch, dim)
    part_bias = None if delta_bias is None else wide(batch, dim)
    slots = CHUNK // PART + 1  # see Slot in scan.cu
    nvrtc.launch(
        source(),
        "scan_backward",
        options(u.dtype, state, delta_softplus, z is not None),
        batch * blocks,
        THREADS,
        slots * THREADS * STATES * 4,
        (grad_y, u, delta, A, B, C, D, z, delta_bias, order, gap, states, grad_u, grad_delta,
         grad_z, part_A, part_B, part_C, part_D, part_bias,
         visits, length, dim, state, _stride(order), _stride(gap)),
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        part_A.sum(0).t().contiguous(),
        _put(part_B.sum(1), order, B),
        _put(part_C.sum(1), order, C),
        None if part_D is None else part_D.sum(0),
        grad_z,
        None if part_bias is None else part_bias.sum(0),
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
    y: Tensor = _conv(x).conv_forward(x, weight, bias, order, gap, activation)
    return y


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
    grads: tuple[Tensor, Tensor, Tensor | None] = _conv(x).conv_backward(
        grad_y, x, weight, bias, order, gap, activation
    )
    return grads


def _conv(x: Tensor) -> ModuleType:
    return reference if triton.unavailable(x.device, x.dtype) else triton


def _check_size(u: Tensor) -> None:
    """The kernels count a sample's bytes in 32 bits."""
    size = u[0].numel() * u.element_size()
    if size >= 2**32:
        raise ValueError(
            f"selective_scan: u has {size} bytes a sample; backend 'cuda' takes less than 2^32."
        )


def _blocks(dim: int, state: int) -> int:
    return -(-dim * lanes(state) // THREADS)


def _put(x_BKN: Tensor, order: Tensor | None, like: Tensor) -> Tensor:
    """The visited rows at their positions, in the shape and dtype of `like`, 0 elsewhere."""
    if order is None:
        return x_BKN.to(like.dtype)
    index = order.expand(x_BKN.shape[:2]).unsqueeze(-1).expand_as(x_BKN)
    return torch.zeros_like(like).scatter_(1, index, x_BKN.to(like.dtype))


def _stride(visits: Tensor | None) -> int:
    """From one sample's row to the next, for (K,), (B, K) or None."""
    return visits.shape[-1] if visits is not None and visits.ndim == 2 else 0


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
