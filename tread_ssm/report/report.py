"""The report of a run: `report.md` in its folder, with pictures in `report/`.

Everything in it is read from the run folder, or measured when it is written.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import Data, EmojiData, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing
from tread_ssm.models.cost import backbone_cost
from tread_ssm.pretrained import load_export
from tread_ssm.report.measure import (
    SAMPLE_STEPS,
    Distances,
    StepTimes,
    emoji_distances,
    generate_from,
    step_times,
)
from tread_ssm.routing.cost import Cost, PlanCost
from tread_ssm.scan.dispatch import choose_backend
from tread_ssm.training.metrics import read_metrics


def write_report(run: str | Path, images: int = 256) -> Path:
    """Write `run`/report.md and its pictures; returns its path. One process calls it.

    images: per set of FD-emoji.

    Raises ConfigError where the folder is no run or lacks checkpoints or metrics, ValueError where
    `images` are too few or too many.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise ConfigError(f"{run} holds no config.yaml; it is no run folder.")
    config = load_config(folder.config)
    rows, found = read_metrics(folder.metrics), folder.checkpoints()
    if not rows or not found:
        missing = "metrics" if not rows else "checkpoint"
        raise ConfigError(
            f"{run} holds no {missing} yet; train it until the first log line and checkpoint "
            f"(train.log_every={config.train.log_every}, "
            f"train.save_every={config.train.save_every})."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = config.data.open()
    cost = backbone_cost(config.model, config.plan)
    times = step_times(config, data, load_export(found[max(found)], device)[0])
    distances = None
    if isinstance(config.data, EmojiData) and isinstance(data, Pixels):
        distances = _distances(config, data, found, images, device)
    _draw_pictures(folder.pictures, rows, cost, times, distances)
    sections = [
        f"# Report of the run `{config.name}`",
        _summary(folder, config, data, rows, times, cost, distances, device),
        _samples(folder),
        _losses(rows),
        _savings(cost, times),
        _quality(distances, len(found), config),
        *_evaluations(folder, config),
    ]
    with replacing(folder.report) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return folder.report


def _distances(
    config: RunConfig,
    data: Pixels,
    found: Mapping[int, Path],
    images: int,
    device: torch.device,
) -> Distances:
    """FD-emoji of samples from the oldest and the newest weights."""
    draws: dict[str, Callable[[Tensor], Tensor]] = {}
    for step in sorted({min(found), max(found)}):
        draws[f"step {step:,}"] = functools.partial(
            generate_from,
            found[step],
            guidance=config.sample.guidance,
            seed=config.seed,
            device=device,
        )
    return emoji_distances(data, draws, images, config.seed)


def _draw_pictures(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    cost: PlanCost,
    times: StepTimes,
    distances: Distances | None,
) -> None:
    # matplotlib takes a second to import; only a report pays for it.
    from tread_ssm.plots.runs import plot_distances, plot_losses, plot_routing

    plot_losses(rows, folder / "losses.png")
    if times.share is not None:
        plot_routing(cost, times.share, folder / "routing.png")
    if distances is not None:
        plot_distances(distances.values, folder / "distances.png")


def _summary(
    folder: RunFolder,
    config: RunConfig,
    data: Data,
    rows: Sequence[Mapping[str, Any]],
    times: StepTimes,
    cost: PlanCost,
    distances: Distances | None,
    device: torch.device,
) -> str:
    last, model = rows[-1], config.model
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model.build().parameters())
    speed = statistics.median(row["images_per_second"] for row in rows)
    lines = {
        "model": f"{model.kind}, {parameters:,} parameters, {model.depth} blocks, "
        f"{config.grid[0]} x {config.grid[1]} image tokens",
        "data": f"{config.data.kind}, {len(data.labels):,} images of {model.image_size} x "
        f"{model.image_size}, {len(data.class_names)} classes",
        "training": f"{last['step']:,} of {config.train.steps:,} steps, {last['images']:,} "
        f"images seen, {_duration(last['seconds'])}, {speed:,.0f} images/s (median)",
        "loss at the end": _last_losses(rows),
    }
    if times.share is not None:
        lines["training step, routed / dense"] = (
            f"{times.share:.2f} measured, {cost.step_share:.2f} by FLOPs"
        )
    if distances is not None:
        lines["FD-emoji"] = ", ".join(f"{k} {v:.1f}" for k, v in distances.values.items())
    lines["machine"] = _machine(config, device)
    lines["repeat with"] = (
        f"`accelerate launch scripts/train.py --config {folder.config} name={config.name}-again`"
    )
    return _table(("", ""), [(f"**{k}**", v) for k, v in lines.items()])


def _samples(folder: RunFolder) -> str:
    grids = sorted(p for p in folder.samples.glob("*.png") if _step_of(p) is not None)
    if not grids:
        return "## Samples\n\nThis run drew no grids (`sample.every: 0`)."
    ends = grids[:1] if len(grids) == 1 else [grids[0], grids[-1]]
    table = _table(
        [f"after {_step_of(p):,} steps" for p in ends],
        [[f"![samples](samples/{p.name})" for p in ends]],
    )
    return (
        "## Samples\n\nThe first and the last grid, from the averaged weights; one row per "
        f"class.\n\n{table}"
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
        f"{_table(('', 'dense', 'routed', 'routed / dense'), rows)}\n\n"
        f"Times are medians of {times.repeats} real training steps of this model (forward, loss, "
        "backward, clipping, AdamW), dense and routed taking turns in one process. FLOPs count "
        "matrix products, convolutions, attention and scans."
    )


def _counts(
    cost: PlanCost, of: Callable[[Cost], int], unit: float, name: str
) -> tuple[str, str, str]:
    dense, routed = of(cost.dense), of(cost.routed)
    return f"{dense * unit:,.4g}{name}", f"{routed * unit:,.4g}{name}", f"{routed / dense:.1%}"


def _quality(distances: Distances | None, n_found: int, config: RunConfig) -> str:
    title = "## FD-emoji"
    if distances is None:
        return f"{title}\n\nNot computed: its features know the embedded emoji only."
    size = config.model.image_size
    rows = [(k, f"{v:.2f}") for k, v in distances.values.items()]
    early = ""
    if n_found == 1:
        early = " No earlier weights are left (`train.retain`), so there is no early row."
    return (
        f"{title}\n\n![FD-emoji of noise, samples and real images](report/distances.png)\n\n"
        f"{_table((f'{distances.images} images each', 'FD-emoji'), rows)}\n\n"
        f"The Frechet distance to {distances.reference:,} real emoji of {size} x {size}, over 64 "
        "features of a small network that was trained on these emoji "
        "(`tread_ssm.evaluation.emoji.make_features`). It is no FID and compares with no other "
        "data set's numbers. Samples come from the averaged weights, by DPM-Solver++ with "
        f"{SAMPLE_STEPS} steps and guidance {config.sample.guidance:g}, with the labels of the "
        f"{distances.images} real images in the last row. Those are not in the reference: their "
        f"distance is what a perfect sampler would reach.{early}"
    )


def _evaluations(folder: RunFolder, config: RunConfig) -> list[str]:
    rows = read_metrics(folder.evals)
    if not rows:
        return []
    names = [name for name in rows[0] if name not in ("step", "count")]
    cells = [[f"{r['step']:,}", *(f"{r.get(n, float('nan')):.4g}" for n in names)] for r in rows]
    said = (
        f"## Evaluations\n\n{rows[-1]['count']:,} images each, always the same noise and classes, "
        f"{config.eval.extractor} features."
    )
    return [f"{said}\n\n{_table(['step', *names], cells)}"]


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
