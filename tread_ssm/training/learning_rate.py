"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

LRSchedule = Literal["constant", "cosine"]


def learning_rate(
    step: int, *, steps: int, peak: float, warmup: int, schedule: LRSchedule
) -> float:
    """The learning rate of one step.

    Args:
        step: 0..steps - 1.
        steps: Of the whole run.
        peak: Largest rate.
        warmup: Steps over which it climbs evenly to the peak.
        schedule: Afterwards the rate stays ("constant"), or falls along half a cosine that ends in
            0 after the last step ("cosine").
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
