"""The recorded runs as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.study.arms import arm_of
from benchmarks.study.results import Row, at
from tread_ssm.tables import markdown_table


def table(rows: Sequence[Row]) -> str:
    """A line an arm and number of steps: means over its seeds, beside its partner's FLOPs."""
    lines = []
    for name, steps in dict.fromkeys((r["arm"], r["steps"]) for r in rows):
        arm, runs = arm_of(name), list(at(rows, name, steps).values())
        partner = list(at(rows, arm.partner or name, steps).values())
        share = f"{runs[0]['flops'] / partner[0]['flops']:.2f}" if partner else ""
        per_step = [r["cpu_seconds"] / (steps - r["start"]) for r in runs if r["start"] < steps]
        lines.append(
            [
                *(arm.label, str(steps), str(len(runs)), share),
                spread([r["loss"] for r in runs], 4),
                spread([r["distance"] for r in runs if r["distance"] is not None], 2),
                f"{1e3 * statistics.mean(per_step):.0f}" if per_step else "",
            ]
        )
    head = ["arm", "steps", "seeds", "of the partner's FLOPs", "held-out loss", "FD-emoji"]
    return markdown_table([*head, "CPU ms a step"], lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
