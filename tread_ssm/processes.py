"""Several processes, where torch.distributed has been set up; one process otherwise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this is the first process; known from the launcher before any has met another."""
    return os.environ.get("RANK", "0") == "0"


def own_share(parts: Sequence[T]) -> Sequence[T]:
    """This process's share: neighbours, so that the shares in turn are the whole, in order."""
    rank, size = world()
    return parts[len(parts) * rank // size : len(parts) * (rank + 1) // size]


def even_share(parts: Sequence[T]) -> tuple[list[T], list[T]]:
    """`own_share`, and parts that this process works on besides, whose results nobody wants.

    With them all processes call a network equally often, as sharded weights need: they are gathered
    by all together. Every process calls it.

    Args:
        parts: The whole; at least one.
    """
    mine = list(own_share(parts))
    return mine, [parts[0]] * (max(gathered(len(mine))) - len(mine))


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order; every process calls it and gets them."""
    _, size = world()
    if size == 1:
        return [value]
    values: list[T | None] = [None] * size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all filled by now
