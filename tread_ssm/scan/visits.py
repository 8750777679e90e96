"""Tokens in visiting order: what the backends in plain torch share, whatever the operation.

Shape legend: B batch, L positions, K visits (K <= L), D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tread_ssm.scan.inputs import wide_dtype


def n_visits(x: Tensor, order: Tensor | None) -> int:
    """K, from an argument (B, L, ...) and the order."""
    return x.shape[1] if order is None else order.shape[-1]


def visited_positions(order: Tensor | None, x: Tensor) -> Tensor | None:
    """order as (B, K); None stays None.

    Raises:
        ValueError: A position is outside 0..L-1, or stands twice; looked at on the CPU only.
    """
    if order is None:
        return None
    batch, length = x.shape[:2]
    visit = order.expand(batch, -1)
    if x.device.type == "cpu":  # elsewhere a look at the values would stall the device
        check_positions(visit, length)
    return visit


def check_positions(visit: Tensor, length: int) -> None:
    """ValueError unless each row of visit (B, K) holds distinct positions in 0..length-1."""
    if visit.numel() == 0:
        return
    low, high = int(visit.min()), int(visit.max())
    if low < 0 or high >= length:
        raise ValueError(
            f"order: positions run from {low} to {high}, but must lie in 0..{length - 1} (L - 1)."
        )
    seen = torch.zeros(len(visit), length, dtype=torch.bool, device=visit.device)
    if int(seen.scatter_(1, visit, True).sum()) != visit.numel():
        raise ValueError("order: a position is visited more than once; visit each at most once.")


def check_gap(gap: Tensor | None) -> None:
    """ValueError where a count of missing tokens is negative; values are looked at on the CPU."""
    if gap is not None and gap.device.type == "cpu" and gap.numel() and int(gap.min()) < 0:
        raise ValueError(
            f"gap: it holds {int(gap.min())}; it counts missing tokens and must be at least 0."
        )


def gap_scale(gap: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    """1 + gap as (1 or B, K, 1), added as floats: integers could overflow.

    Raises:
        ValueError: A gap is negative.
    """
    check_gap(gap)
    return 1.0 if gap is None else (1 + gap.to(dtype)).view(-1, gap.shape[-1], 1)


def take(x: Tensor, visit: Tensor | None) -> Tensor:
    """x (B, L, D) at the visited positions, (B, K, D), in the dtype of the state."""
    x = x.to(wide_dtype(x.dtype))
    if visit is None:
        return x
    return x.gather(1, visit.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def put(x_BKD: Tensor, visit: Tensor | None, like: Tensor) -> Tensor:
    """The inverse of take: shape and dtype of `like`, zero where nothing was visited."""
    if visit is None:
        return x_BKD.to(like.dtype).contiguous()
    index = visit.unsqueeze(-1).expand_as(x_BKD)
    return like.new_zeros(like.shape).scatter_(1, index, x_BKD.to(like.dtype))


# What the backends with kernels need ------------------------------------------------------------


def contiguous(inputs: Any) -> Any:
    """A tuple of inputs with every tensor contiguous."""
    return type(inputs)(*(x.contiguous() if isinstance(x, Tensor) else x for x in inputs))


def rows_in_place(x: Tensor) -> Tensor:
    """x (B, L, ...) itself where it is contiguous but for the distance between positions, like a
    slice of wider rows; else a contiguous copy."""
    evenly = x.stride(0) == x.shape[1] * x.stride(1)
    return x if evenly and x[0, 0].is_contiguous() else x.contiguous()


def row_stride(visits: Tensor | None) -> int:
    """Elements from one sample's row of order or gap to the next; 0 where all share one."""
    return visits.shape[1] if visits is not None and visits.ndim == 2 else 0


def output_like(x: Tensor, visits: int) -> Tensor:
    """A contiguous output like x (B, L, ...); zeros where some positions are never visited."""
    new = torch.empty_like if visits == x.shape[1] else torch.zeros_like
    return new(x, memory_format=torch.contiguous_format)
