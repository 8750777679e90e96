"""The decayed product in Triton: CUDA and ROCm devices, or the CPU under Triton's interpreter.

Only the host side is here, so that asking whether the backend can run loads nothing; the kernels
are in triton_kernels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tread_ssm.scan.inputs import Gradients, SSDInputs
from tread_ssm.scan.selective.triton import unavailable
from tread_ssm.scan.visits import n_visits, output_like, row_stride, rows_in_place

__all__ = [
    "FAST_ON",
    "FUSES_TERMS",
    "ssd_backward",
    "ssd_forward",
    "ssd_states_shape",
    "unavailable",
]

FAST_ON = ("cuda",)
FUSES_TERMS = False

CHUNK = 64
"""Visits of a chunk, and rows of the tensor cores' products."""
PROGRAMS = 1024
"""Enough for every GPU. A group's heads are cut into ranges until a launch has so many programs,"""
LAUNCHES = 4
"""and until a range has no more than so many heads, each of which costs two launches."""
WARPS = 8
"""The backward's tiles need the registers of so many."""


def ssd_states_shape(x: SSDInputs) -> tuple[int, ...]:
    """The state after each chunk but the last, with N and P rounded up to powers of two."""
    batch, _, heads, channels = x.v.shape
    chunks = -(-n_visits(x.v, x.order) // CHUNK)
    return (batch, chunks - 1, heads, block(x.q.shape[3]), block(channels))


def block(n: int) -> int:
    """Size of a tile along an axis of n: a power of two, at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def ssd_forward(x: SSDInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in v's dtype, and the chunk states."""
    from tread_ssm.scan.decayed.triton_kernels import forward_kernel

    x = _readable(x)
    y = output_like(x.v, n_visits(x.v, x.order))
    states = x.v.new_empty(ssd_states_shape(x), dtype=torch.float32)
    batch, _, heads, _ = x.v.shape
    forward_kernel[(batch * heads,)](
        *x[:6], y, states, *_sizes(x), *_strides(x.q, x.k, x.v), *_visit_strides(x), **_tiles(x)
    )
    return y, states


def ssd_backward(grad_y: Tensor, x: SSDInputs, states: Tensor) -> Gradients:
    """Gradients of q, k, v and log_decay, from the chunk states that the forward kept, and None."""
    from tread_ssm.scan.decayed.triton_kernels import (
        across_kernel,
        after_kernel,
        inside_kernel,
    )

    x, g, states = _readable(x), rows_in_place(grad_y), states.contiguous()
    (batch, _, heads, _), groups = x.v.shape, x.q.shape[2]
    visits, chunks = n_visits(x.v, x.order), states.shape[1] + 1
    after = torch.empty_like(states)
    if chunks > 1:
        after_kernel[(batch * heads,)](
            g, x.q, x.log_decay, x.order, x.gap, after,
            *_sizes(x), *_strides(g, x.q), *_visit_strides(x), **_tiles(x),
        )  # fmt: skip
    ranges = _ranges(batch * groups * chunks, heads // groups)
    programs = batch * groups * chunks * ranges
    sums = x.log_decay.new_empty(()).expand(*x.q.shape[:3], ranges, x.q.shape[3])
    sum_q, sum_k = (output_like(sums, visits) for _ in range(2))
    grads = sum_q, sum_k, output_like(x.v, visits), output_like(x.log_decay, visits)
    strides = (*_strides(g, x.q, x.k, x.v), *_visit_strides(x))
    for index in range(heads // groups // ranges):
        sizes = (*_sizes(x), ranges, index, *strides)
        if chunks > 1:
            across_kernel[(programs,)](g, *x[:6], states, after, *grads, *sizes, **_tiles(x))
        inside_kernel[(programs,)](g, *x[:6], *grads, *sizes, **_tiles(x))
    of_q, of_k = sum_q.sum(3).to(x.q.dtype), sum_k.sum(3).to(x.k.dtype)
    return of_q, of_k, grads[2], grads[3], None, None


def _ranges(programs: int, per_group: int) -> int:
    """Into how many equal ranges the heads of a group are cut."""
    wanted = max(-(-PROGRAMS // programs), -(-per_group // LAUNCHES))
    return next(n for n in range(min(wanted, per_group), per_group + 1) if per_group % n == 0)


def _readable(x: SSDInputs) -> SSDInputs:
    """Contiguous, but q, k and v may be slices of wider rows."""
    x.refuse_terms("decayed.triton")
    order, gap = (None if t is None else t.contiguous() for t in (x.order, x.gap))
    q, k, v = (rows_in_place(t) for t in (x.q, x.k, x.v))
    return SSDInputs(q, k, v, x.log_decay.contiguous(), order, gap, None, None)


def _sizes(x: SSDInputs) -> tuple[int, ...]:
    (_, length, heads, channels), (groups, state) = x.v.shape, x.q.shape[2:]
    return n_visits(x.v, x.order), length, groups, heads, state, channels


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Elements from one position to the next."""
    return tuple(x.stride(1) for x in tensors)


def _visit_strides(x: SSDInputs) -> tuple[int, int]:
    return row_stride(x.order), row_stride(x.gap)


def _tiles(x: SSDInputs) -> dict[str, int]:
    n, p = block(x.q.shape[3]), block(x.v.shape[3])
    return {"T": CHUNK, "N": n, "P": p, "num_warps": WARPS, "num_stages": 1}
