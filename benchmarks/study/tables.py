"""The recorded runs as Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.study.arms import arm_of, rate_arms
from benchmarks.study.curves import (
    AXES,
    MEASURES,
    NAMES,
    Measure,
    Recorded,
    change,
    interval,
    matched,
    reach,
    share_of_flops,
)
from benchmarks.study.results import Row, at
from tread_ssm.tables import markdown_table

_DIGITS: Mapping[Measure, int] = {"loss": 3, "distance": 2}  # of all values in a table


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


def matched_table(
    arms: Mapping[str, Recorded], pairs: Sequence[tuple[str, str]], measure: Measure
) -> str:
    """Markdown: for pairs of arms (from, to), both values and the change at equal cost.

    Means over seeds; behind +-, the standard deviation of the change over seeds.
    """
    lines = [
        "| " + NAMES[measure] + " | " + " | ".join(f"equal {NAMES[x]}" for x in AXES) + " |",
        "|---" * (len(AXES) + 1) + "|",
    ]
    for first, second in pairs:
        a, b = arms[first], arms[second]
        cells = []
        for axis in AXES:
            before, after = matched(a.curve(measure), b.curve(measure), axis)
            by = 100 * change(before, after)
            if np.isnan(by).any():
                cells.append("not measured")
                continue
            several = len(by) > 1
            spread = f" ± {statistics.stdev(by):.1f} %" if several else " %, one seed"
            ends = " → ".join(f"{x.mean():.{_DIGITS[measure]}f}" for x in (before, after))
            cells.append(f"{ends} ({by.mean():+.1f}{spread})")
        lines.append(f"| {a.label} → {b.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answer_table(
    arms: Mapping[str, Recorded], names: Sequence[str], partner: str = "its dense partner"
) -> str:
    """Markdown: routed arms against their partners, with 95 % intervals over the seeds.

    The last two columns are what an arm spends until it is as good as its partner is at its end,
    as a share of what the partner has spent.
    """
    lines = []
    for name in names:
        arm = arms[name]
        other = arms[arm.arm.partner or name]
        for measure in MEASURES:
            if None in (other.distance, arm.distance) and measure == "distance":
                continue
            a, b = other.curve(measure), arm.curve(measure)
            changes = [100 * change(*matched(a, b, axis)) for axis in AXES]
            shares = [reach(a, b, axis) for axis in AXES[1:]]
            cells = [within(by, "+.1f", " %") for by in changes]
            cells += [within(share, ".2f", "") for share in shares]
            lines.append([arm.label, str(len(b.values)), NAMES[measure], *cells])
    head = [f"arm, against {partner}", "seeds", "measure"]
    head += [f"at equal {x}" for x in ("steps", "FLOPs", "seconds")]
    return markdown_table([*head, "FLOPs to its end", "seconds to its end"], lines)


def within(values: np.ndarray, form: str, unit: str) -> str:
    """Mean and half the 95 % interval; how many seeds have no value; "" where none has."""
    there = values[~np.isnan(values)]
    if not len(there):
        return "not measured" if unit else "not seen"
    if len(there) < len(values):
        return f"not seen in {len(values) - len(there)} of {len(values)}"
    mean, half = interval(there)
    spread = "one seed" if math.isnan(half) else f"± {half:{form.lstrip('+')}}"
    return (
        f"{mean:{form}}{unit} ({spread})" if math.isnan(half) else f"{mean:{form}} {spread}{unit}"
    )


def cost_table(arms: Mapping[str, Recorded], names: Sequence[str]) -> str:
    """Markdown: size of each arm, FLOPs and time of a step (a mean, where they change)."""
    lines = [
        "| arm | parameters | GFLOPs per step | of dense | ms per step | of dense | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        arm = arms[name]
        dense = arms[arm.arm.partner or name].loss
        steps, flops, seconds = (arm.loss.spent(x)[-1] for x in AXES)
        lines.append(
            f"| {arm.label} | {arm.parameters:,} | {flops / steps / 1e9:.2f} "
            f"| {share_of_flops(arms, name):.2f} | {seconds / steps * 1e3:.0f} "
            f"| {seconds / steps / (dense.seconds[-1] / dense.steps[-1]):.2f} "
            f"| {len(arm.loss.values)} |"
        )
    return "\n".join(lines)


def rates_table(rows: Sequence[Row], names: Sequence[str], steps: int) -> str:
    """Markdown: held-out loss of arms after a short run at each learning rate that was tried.

    Args:
        rows: The recorded runs.
        names: Arms at their own rate; `rate_arms` are the others.
        steps: Steps of the short runs.
    """
    found = {name: _tried(rows, name, steps) for name in names}
    rates = sorted({rate for tried in found.values() for rate in tried})
    lines = []
    for name, tried in found.items():
        best = min(tried.values(), default=None)
        cells = [f"{tried[r]:.4f}" if r in tried else "" for r in rates]
        bold = [
            f"**{c}**" if c and tried[r] == best else c for c, r in zip(cells, rates, strict=True)
        ]
        lines.append([arm_of(name).label, *bold])
    title = f"held-out loss after {steps} steps, by learning rate"
    return markdown_table([title, *(f"{rate:g}" for rate in rates)], lines)


def _tried(rows: Sequence[Row], name: str, steps: int) -> dict[float, float]:
    """Loss by learning rate, of seed 0."""
    arms = (arm_of(name), *rate_arms(name))
    found = {arm.rate: at(rows, arm.name, steps).get(0) for arm in arms}
    return {rate: row["loss"] for rate, row in found.items() if row is not None}
