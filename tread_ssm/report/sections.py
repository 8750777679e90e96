"""The sections of a report: findings in, Markdown out."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import torch

from tread_ssm.config.run import RunConfig
from tread_ssm.data import Data
from tread_ssm.models.cost import count_parameters
from tread_ssm.report.grids import grids_by_step
from tread_ssm.report.history import History
from tread_ssm.report.markdown import code, literal
from tread_ssm.report.measure import SAMPLE_STEPS, Distances, StepTimes
from tread_ssm.report.page import TIMELINE
from tread_ssm.routing.cost import Cost, PlanCost
from tread_ssm.scan.dispatch import choose_backend
from tread_ssm.tables import duration, short
from tread_ssm.tables import markdown_table as table


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        history: What the run has logged.
        data: Its data.
        checkpoints: How many are left.
        cost: FLOPs and tokens, dense and routed.
        times: Measured training steps.
        distances: FD-emoji of samples. None: the data is not the embedded emoji.
        neighbours: Whether samples stand beside the nearest training images in a picture.
        device: Where it was measured.
    """

    history: History
    data: Data
    checkpoints: int
    cost: PlanCost
    times: StepTimes
    distances: Distances | None
    neighbours: bool
    device: torch.device

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.history.config


def sections(found: Findings) -> list[str]:
    """The whole report, section by section."""
    return [
        f"# Report of the run {literal(found.config.name)}",
        _summary(found),
        _samples(found),
        _losses(found.history.rows),
        _savings(found.cost, found.times),
        *_quality(found),
        *_evaluations(found),
    ]


def _summary(found: Findings) -> str:
    config, model, rows, times = found.config, found.config.model, found.history.rows, found.times
    last = rows[-1]
    speed = statistics.median(row["images_per_second"] for row in rows)
    lines = {
        "model": f"{model.kind}, {count_parameters(model):,} parameters, {model.depth} blocks, "
        f"{config.grid[0]} x {config.grid[1]} image tokens",
        "data": f"{config.data.kind}, {len(found.data.labels):,} images of {model.image_size} x "
        f"{model.image_size}, {len(found.data.class_names)} classes",
        "training": f"{last['step']:,} of {config.train.steps:,} steps, {last['images']:,} "
        f"images seen, {duration(last['seconds'])}, {speed:,.0f} images/s (median)",
        "loss at the end": _last_losses(rows),
    }
    validated = [row for row in rows if row.get("validation_loss") is not None]
    if validated:
        lines["validation loss"] = (
            f"{validated[-1]['validation_loss']:.4g} after step {validated[-1]['step']:,}: dense "
            f"network, averaged weights, {config.data.validation:.1%} of the samples"
        )
    if times.share is not None:
        lines["training step, routed / dense"] = (
            f"{times.share:.2f} in time (median of {times.repeats} pairs of steps that took "
            f"turns), {found.cost.step_share:.2f} in FLOPs"
        )
    if found.distances is not None:
        values = found.distances.values.items()
        lines["FD-emoji"] = ", ".join(f"{k} {v:.1f}" for k, v in values)
    lines["machine"] = _machine(config, found.device)
    lines["repeat with"] = code(
        f"tread-ssm train --config {found.history.folder.config} name={config.name}-again"
    )
    return table(("", ""), [(f"**{k}**", v) for k, v in lines.items()])


def _samples(found: Findings) -> str:
    grids = grids_by_step(found.history.folder)
    if not grids:
        text = "This run sampled no image grids (`sample.every: 0`)."
    else:
        ends = sorted({min(grids), max(grids)})
        pictures = table(
            [f"after {step:,} steps" for step in ends],
            [[f"![samples](samples/{quote(grids[step].name)})" for step in ends]],
        )
        text = (
            "The first and the last image grid, from the averaged weights; one row per class.\n\n"
            f"{pictures}\n\nAll stages (a slider, on the page `report.html`):\n\n{TIMELINE}"
        )
    if found.neighbours:
        text += (
            "\n\n![samples, and the training images nearest to each](report/neighbours.png)\n\n"
            "Each row starts with a sample of the newest weights. The training images nearest to "
            "it follow, by the squared difference of their pixels. A sample that equals its "
            "neighbour was learned by heart."
        )
    return f"## Samples\n\n{text}"


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
    text = (
        "Kept tokens went through every block, routed ones skipped the blocks of their route. "
        "Thin: means between two log lines; thick: smoothed over them. Below: by how much the loss "
        "of routed tokens is above that of kept ones."
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
            f"{short(cost.dense.forward, 'FLOPs')} forward; a training step of {times.batch} "
            f"images takes {times.dense * 1e3:.1f} ms."
        )
    rows = [
        ("tokens, summed over the blocks", *_counts(cost, lambda c: sum(c.tokens), "{:,}".format)),
        ("forward pass of an image", *_counts(cost, lambda c: c.forward, _flops)),
        ("forward and backward", *_counts(cost, lambda c: c.training, _flops)),
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
        "backward, clipping, optimiser), dense and routed taking turns in one process. FLOPs count "
        "matrix products, convolutions, attention and scans."
    )


def _counts(
    cost: PlanCost, of: Callable[[Cost], int], form: Callable[[int], str]
) -> tuple[str, str, str]:
    dense, routed = of(cost.dense), of(cost.routed)
    return form(dense), form(routed), f"{routed / dense:.1%}"


def _flops(count: int) -> str:
    return short(count, "FLOPs")


def _quality(found: Findings) -> list[str]:
    distances, config = found.distances, found.config
    title = "## FD-emoji"
    if distances is None:  # its features know the embedded emoji only
        return []
    size = config.model.image_size
    rows = [(k, f"{v:.2f}") for k, v in distances.values.items()]
    early = ""
    if found.checkpoints == 1:
        early = " No earlier weights are left (`train.retain`), so there is no early row."
    return [
        f"{title}\n\n![FD-emoji of noise, samples and real images](report/distances.png)\n\n"
        f"{table((f'{distances.images} images each', 'FD-emoji'), rows)}\n\n"
        f"The Frechet distance to {distances.reference:,} real emoji of {size} x {size}, over 64 "
        "features of a small network that was trained on these emoji "
        "(`tread_ssm.evaluation.emoji.make_features`). It is no FID and compares with no other "
        "data set's numbers. Samples come from the averaged weights, by DPM-Solver++ with "
        f"{SAMPLE_STEPS} steps and guidance {config.sample.guidance:g}, with the labels of the "
        f"{distances.images} real images in the last row. Those are not in the reference: their "
        f"distance is what a perfect sampler would reach.{early}"
    ]


def _evaluations(found: Findings) -> list[str]:
    rows, names = found.history.evals, found.history.measures
    if not rows:
        return []
    cells = [[f"{r['step']:,}", *(_figure(r.get(n)) for n in names)] for r in rows]
    said = (
        f"## Evaluations\n\n{rows[-1]['count']:,} images each, always the same noise and classes, "
        f"{found.config.eval.extractor} features."
    )
    picture = "![measures over the steps](report/evaluations.png)"
    return [f"{said}\n\n{picture}\n\n{table(['step', *map(literal, names.values())], cells)}"]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


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
