"""The recorded runs as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.study.arms import arm_of
from benchmarks.study.results import by_arm
from tread_ssm.tables import markdown_table


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line an arm: means over its seeds, and what they are of its partner's."""
    found = by_arm(list(rows))
    lines = []
    for name, runs in found.items():
        arm = arm_of(name)
        partner = found.get(arm.partner or name, runs)
        seconds = [r["cpu_seconds"] for r in runs if r["cpu_seconds"] is not None]
        lines.append(
            [
                arm.label,
                str(len(runs)),
                str(runs[0]["steps"][-1]),
                f"{runs[0]['flops'] / partner[0]['flops']:.2f}",
                spread([r["loss"][-1] for r in runs], 4),
                spread([r["distance"][-1] for r in runs if r["distance"]], 2),
                f"{statistics.mean(seconds):.0f}" if seconds else "",
            ]
        )
    head = ["arm", "seeds", "steps", "share of FLOPs", "held-out loss", "FD-emoji", "CPU s"]
    return markdown_table(head, lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
