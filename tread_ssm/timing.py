"""Timing that can be trusted on a shared machine: the sides take turns, medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time sides that take turns: a b a b ...

    Each side runs once beforehand, uncounted. On a GPU each call is waited for.

    Args:
        sides: What to time, by name.
        repeats: Calls of each side.
        clock: Tells seconds. `time.process_time` leaves out what else the machine does; of several
            threads it tells the sum.

    Returns:
        The seconds of each call, by the name of its side.
    """
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            _wait()
            start = clock()
            run()
            _wait()
            seconds[name].append(clock() - start)
    return seconds


def median_of_pairs(a: list[float], b: list[float]) -> float:
    """The median of a / b, turn by turn: drift of the machine falls out of it."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
