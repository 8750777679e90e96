"""The sections of a report: findings in, Markdown out."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from tread_ssm.config.run import RunConfig
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import Data
from tread_ssm.report.markdown import code, literal
from tread_ssm.report.measure import SAMPLE_STEPS, Distances, StepTimes
from tread_ssm.routing.cost import Cost, PlanCost
from tread_ssm.scan.dispatch import choose_backend
from tread_ssm.tables import markdown_table as table


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        folder: The run's folder.
        config: Its configuration.
        data: Its data.
        rows: Of metrics.jsonl.
        evals: Rows of evals.jsonl.
        checkpoints: How many are left.
        cost: FLOPs and tokens, dense and routed.
        times: Measured training steps.
        distances: FD-emoji of samples. None: the data is not the embedded emoji.
        device: Where it was measured.
    """

    folder: RunFolder
    config: RunConfig
    data: Data
    rows: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]
    checkpoints: int
    cost: PlanCost
    times: StepTimes
    distances: Distances | None
    device: torch.device


def sections(found: Findings) -> list[str]:
    """The whole report, section by section."""
    return [
        f"# Report of the run {literal(found.config.name)}",
        _summary(found),
        _samples(found.folder),
        _losses(found.rows),
        _savings(found.cost, found.times),
        _quality(found),
        *_evaluations(found),
    ]


def _summary(found: Findings) -> str:
    config, model, rows, times = found.config, found.config.model, found.rows, found.times
    last = rows[-1]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model.build().parameters())
    speed = statistics.median(row["images_per_second"] for row in rows)
    lines = {
        "model": f"{model.kind}, {parameters:,} parameters, {model.depth} blocks, "
        f"{config.grid[0]} x {config.grid[1]} image tokens",
        "data": f"{config.data.kind}, {len(found.data.labels):,} images of {model.image_size} x "
        f"{model.image_size}, {len(found.data.class_names)} classes",
        "training": f"{last['step']:,} of {config.train.steps:,} steps, {last['images']:,} "
        f"images seen, {_duration(last['seconds'])}, {speed:,.0f} images/s (median)",
        "loss at the end": _last_losses(rows),
    }
    if times.share is not None:
        lines["training step, routed / dense"] = (
            f"{times.share:.2f} measured, {found.cost.step_share:.2f} by FLOPs"
        )
    if found.distances is not None:
        values = found.distances.values.items()
        lines["FD-emoji"] = ", ".join(f"{k} {v:.1f}" for k, v in values)
    lines["machine"] = _machine(config, found.device)
    lines["repeat with"] = code(
        f"accelerate launch scripts/train.py --config {found.folder.config} "
        f"name={config.name}-again"
    )
    return table(("", ""), [(f"**{k}**", v) for k, v in lines.items()])


def _samples(folder: RunFolder) -> str:
    grids = sorted(p for p in folder.samples.glob("*.png") if _step_of(p) is not None)
    if not grids:
        return "## Samples\n\nThis run sampled no image grids (`sample.every: 0`)."
    ends = grids[:1] if len(grids) == 1 else [grids[0], grids[-1]]
    pictures = table(
        [f"after {_step_of(p):,} steps" for p in ends],
        [[f"![samples](samples/{quote(p.name)})" for p in ends]],
    )
    return (
        "## Samples\n\nThe first and the last image grid, from the averaged weights; one row per "
        f"class.\n\n{pictures}"
    )


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
    text = (
        "Kept tokens went through every block, routed ones skipped the blocks of their route. "
        "Thin: means between two log lines; thick: smoothed over them."
    )
    if all(row["routed_loss"] is None for row in rows):
        text = "Thin: means between two log lines; thick: smoothed over them."
    return f"## Loss\n\n![loss over the steps](report/losses.png)\n\n{text}"


def _savings(cost: PlanCost, times: StepTimes) -> str:
    title = "## What routing saves"
    step = f"training step, {times.batch} images, measured"
    if times.routed is None or times.share is None:
        return (
            f"{title}\n\nThis run has no routes. Every image takes "
            f"{cost.dense.forward / 1e9:.3g} GFLOPs forward; a training step of {times.batch} "
            f"images takes {times.dense * 1e3:.1f} ms."
        )
    rows = [
        ("tokens, summed over the blocks", *_counts(cost, lambda c: sum(c.tokens), 1, "")),
        ("forward pass of an image", *_counts(cost, lambda c: c.forward, 1e-9, " GFLOPs")),
        ("forward and backward", *_counts(cost, lambda c: c.training, 1e-9, " GFLOPs")),
        (
            step,
            f"{times.dense * 1e3:.1f} ms",
            f"{times.routed * 1e3:.1f} ms",
            f"{times.share:.1%}",
        ),
    ]
    return (
        f"{title}\n\n![tokens per block, and what is left of the cost](report/routing.png)\n\n"
        f"{table(('', 'dense', 'routed', 'routed / dense'), rows)}\n\n"
        f"Times are medians of {times.repeats} real training steps of this model (forward, loss, "
        "backward, clipping, AdamW), dense and routed taking turns in one process. FLOPs count "
        "matrix products, convolutions, attention and scans."
    )


def _counts(
    cost: PlanCost, of: Callable[[Cost], int], unit: float, name: str
) -> tuple[str, str, str]:
    dense, routed = of(cost.dense), of(cost.routed)
    return f"{dense * unit:,.4g}{name}", f"{routed * unit:,.4g}{name}", f"{routed / dense:.1%}"


def _quality(found: Findings) -> str:
    distances, config = found.distances, found.config
    title = "## FD-emoji"
    if distances is None:
        return f"{title}\n\nNot computed: its features know the embedded emoji only."
    size = config.model.image_size
    rows = [(k, f"{v:.2f}") for k, v in distances.values.items()]
    early = ""
    if found.checkpoints == 1:
        early = " No earlier weights are left (`train.retain`), so there is no early row."
    return (
        f"{title}\n\n![FD-emoji of noise, samples and real images](report/distances.png)\n\n"
        f"{table((f'{distances.images} images each', 'FD-emoji'), rows)}\n\n"
        f"The Frechet distance to {distances.reference:,} real emoji of {size} x {size}, over 64 "
        "features of a small network that was trained on these emoji "
        "(`tread_ssm.evaluation.emoji.make_features`). It is no FID and compares with no other "
        "data set's numbers. Samples come from the averaged weights, by DPM-Solver++ with "
        f"{SAMPLE_STEPS} steps and guidance {config.sample.guidance:g}, with the labels of the "
        f"{distances.images} real images in the last row. Those are not in the reference: their "
        f"distance is what a perfect sampler would reach.{early}"
    )


def _evaluations(found: Findings) -> list[str]:
    rows = found.evals
    if not rows:
        return []
    names = [name for name in rows[0] if name not in ("step", "count", "routed_loss")]
    cells = [[f"{r['step']:,}", *(f"{r.get(n, float('nan')):.4g}" for n in names)] for r in rows]
    said = (
        f"## Evaluations\n\n{rows[-1]['count']:,} images each, always the same noise and classes, "
        f"{found.config.eval.extractor} features."
    )
    return [f"{said}\n\n{table(['step', *map(literal, names)], cells)}"]


def _last_losses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the last tenth of the rows that have the loss in question."""
    routed = [row for row in rows if row["routed_loss"] is not None]
    if not routed:
        return f"{_tail(rows, 'loss'):.4g}"
    text = f"kept {_tail(routed, 'kept_loss'):.4g}, routed {_tail(routed, 'routed_loss'):.4g}"
    if rows[-1]["routed_loss"] is not None:
        return text
    dense = [row for row in rows if row["step"] > routed[-1]["step"]]
    return f"{text} (step {routed[-1]['step']:,}); {_tail(dense, 'loss'):.4g} without routes"


def _tail(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows[-max(1, len(rows) // 10) :])


def _machine(config: RunConfig, device: torch.device) -> str:
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} used"
    text = f"{place}, torch {torch.__version__}"
    if config.model.kind == "dit":
        return text
    return f"{text}, scan backend `{choose_backend(None, device.type, torch.float32)}`"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _step_of(path: Path) -> int | None:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits) if digits else None
