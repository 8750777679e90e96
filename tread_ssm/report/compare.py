"""Several runs beside each other: a table, curves, and samples from the same noise.

Runs that differ in their seed alone are one arm; its figures get a standard deviation.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tread_ssm.errors import ConfigError
from tread_ssm.files import write_text
from tread_ssm.models.cost import count_parameters
from tread_ssm.plots.colours import save
from tread_ssm.plots.compare import Curve, plot_curves
from tread_ssm.report.arms import Arm, arms_of, measures_of
from tread_ssm.report.grids import timeline
from tread_ssm.report.history import History
from tread_ssm.report.markdown import literal, routes_text
from tread_ssm.report.page import TIMELINE, Timeline, write_page
from tread_ssm.report.paired import paired_samples
from tread_ssm.tables import markdown_table, prefix, short
from tread_ssm.training.cost import training_cost


def write_comparison(runs: Sequence[str | Path], out: Path) -> Path:
    """Write comparison.md, its pictures and comparison.html, which holds all of it.

    Args:
        runs: Folders of runs, at least two.
        out: The folder to write to.

    Returns:
        The path of the page.

    Raises:
        ConfigError: A folder is no run, or there are fewer than two.
    """
    if len(set(map(os.path.abspath, runs))) < 2:
        raise ConfigError(f"compare: {runs[0]} is the only run named; name two or more.")
    arms = arms_of([History.read(run) for run in runs])
    measures = measures_of(arms)
    out.mkdir(parents=True, exist_ok=True)
    save(plot_curves(measures), out / "curves.png")
    paired = paired_samples(arms, out / "samples.png")
    stages = timeline([arm.name for arm in arms], [arm.runs[0].folder for arm in arms])
    text = "\n\n".join([*_text(arms, measures), paired, _stages(stages)]) + "\n"
    write_text(out / "comparison.md", text)
    write_page(out / "comparison.html", text, stages)
    return out / "comparison.html"


def _text(arms: Sequence[Arm], measures: Mapping[str, Sequence[Curve]]) -> list[str]:
    seeds = any(len(arm.runs) > 1 for arm in arms)
    said = "Runs that differ in their seed alone are one row; ± is the standard deviation over them"
    return [
        "# Comparison of " + ", ".join(literal(arm.name) for arm in arms),
        _table(arms, measures),
        f"{said if seeds else 'One seed each: small differences mean nothing'}. The last value of "
        "each measure is shown. FLOPs count forward and backward passes as the routes' schedule "
        "has them; FLOPs / dense compares a step with all routes with a dense one. Seconds are "
        "those of training alone, on whatever machine each run had.",
        "## Curves\n\n![measures over steps, FLOPs and seconds](curves.png)\n\nThe training loss "
        "is that of kept tokens, smoothed. A routed network sees fewer tokens in the middle than a "
        "dense one, so compare the other measures.",
    ]


def _stages(stages: Timeline | None) -> str:
    title = "## Samples as training went on"
    if stages is None:
        return f"{title}\n\nThere are none: a run sampled no image grids (`sample.every: 0`)."
    return f"{title}\n\nA slider, on the page `comparison.html`:\n\n{TIMELINE}"


def _table(arms: Sequence[Arm], measures: Mapping[str, Sequence[Curve]]) -> str:
    head = ["run", "seeds", "routes", "FLOPs / dense", "parameters", "steps", "FLOPs"]
    head += ["seconds", *measures]
    unit, letter = prefix(max(flops[-1] for arm in arms for flops in arm.flops))
    rows = []
    for arm in arms:
        config = arm.runs[0].config
        ends = {
            name: [c.values[-1] for c in measures[name] if c.arm == arm.name] for name in measures
        }
        rows.append(
            [
                literal(arm.name),
                str(len(arm.runs)),
                routes_text(config.plan, " past blocks ") or "none",
                f"{training_cost(config, config.plan).step_share:.0%}",
                short(count_parameters(config.model)),
                _spread([run.rows[-1]["step"] for run in arm.runs], "{:,.0f}"),
                f"{_spread([flops[-1] / unit for flops in arm.flops], '{:.3g}')} {letter}",
                _spread([run.rows[-1]["seconds"] for run in arm.runs], "{:,.0f}"),
                *(_spread(values, "{:.4g}") for values in ends.values()),
            ]
        )
    return markdown_table(head, rows)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the standard deviation where there are several different values."""
    if not values:
        return "-"
    mean = form.format(statistics.mean(values))
    if len(set(values)) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2g}"
