"""The report of a run: `report.md` in its folder, with pictures in `report/`.

Everything in it is read from the run folder, or measured when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tread_ssm.config.run import RunConfig, load_config
from tread_ssm.config.run_folder import RunFolder
from tread_ssm.config.strict import plain
from tread_ssm.data import EmojiData, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.files import replacing
from tread_ssm.models.cost import backbone_cost
from tread_ssm.pretrained import load_export
from tread_ssm.report.measure import Distances, emoji_distances, generate_from, step_times
from tread_ssm.report.sections import Findings, sections
from tread_ssm.training.metrics import read_metrics

_LOGGED = ("images", "seconds", "images_per_second", "loss", "kept_loss")


def write_report(run: str | Path, images: int = 256) -> Path:
    """Write `run`/report.md and its pictures. One process calls it.

    Args:
        run: The run's folder.
        images: Per set of FD-emoji.

    Returns:
        The path of the report.

    Raises:
        ConfigError: The folder is no run, lacks checkpoints or metrics, or is damaged.
        ValueError: `images` are too few or too many.
    """
    folder = RunFolder(Path(run))
    if not folder.config.is_file():
        raise ConfigError(f"{run} holds no config.yaml; it is no run folder.")
    config = load_config(folder.config)
    rows = _checked(folder.metrics, _LOGGED)
    left = folder.checkpoints()
    if not rows or not left:
        missing = "metrics" if not rows else "checkpoint"
        raise ConfigError(
            f"{run} holds no {missing} yet; train it until the first log line and checkpoint "
            f"(train.log_every={config.train.log_every}, "
            f"train.save_every={config.train.save_every})."
        )
    for checkpoint in left.values():
        _check_described(checkpoint / "config.json", config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = config.data.open()
    distances = None
    times = step_times(config, data, load_export(left[max(left)], device)[0])
    if isinstance(config.data, EmojiData) and isinstance(data, Pixels):
        distances = _distances(config, data, left, images, device)
    found = Findings(
        folder=folder,
        config=config,
        data=data,
        rows=rows,
        evals=_checked(folder.evals, ("count",)),
        checkpoints=len(left),
        cost=backbone_cost(config.model, config.plan),
        times=times,
        distances=distances,
        device=device,
    )
    _plot(found)
    with replacing(folder.report) as temporary:
        temporary.write_text("\n\n".join(sections(found)) + "\n", encoding="utf-8")
    return folder.report


def _checked(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file. Raises ConfigError where they are no log of training."""
    rows, before = read_metrics(path), 0
    for number, row in enumerate(rows, 1):
        fields = row if isinstance(row, dict) else {}
        values = [fields.get(k) for k in ("step", *keys)]
        values += [v for v in fields.values() if v is not None]
        if not all(isinstance(v, (int, float)) and abs(v) < 1e300 for v in values):
            raise ConfigError(
                f"{path}: row {number} is damaged ({str(row)[:80]}); it needs finite numbers for "
                f"step, {', '.join(keys)}. Remove that row."
            )
        if not before < row["step"] < 1e12:
            raise ConfigError(
                f"{path}: row {number} is of step {row['step']}, after one of step {before}; steps "
                f"must rise. Remove that row."
            )
        before = row["step"]
    return [{"routed_loss": None} | row for row in rows]


def _check_described(path: Path, config: RunConfig) -> None:
    """Raises ConfigError where a checkpoint describes another model than the run's."""
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}); remove {path.parent}, if there are other "
            f"checkpoints."
        ) from None
    if model != plain(config.model):
        raise ConfigError(
            f"{path} describes another model than the run's config.yaml; one of them is damaged. "
            f"Remove {path.parent}, if there are other checkpoints."
        )


def _distances(
    config: RunConfig, data: Pixels, left: Mapping[int, Path], images: int, device: torch.device
) -> Distances:
    """FD-emoji of samples from the oldest and the newest weights."""
    sets: dict[str, Callable[[Tensor], Tensor]] = {
        f"step {step:,}": partial(
            generate_from,
            left[step],
            guidance=config.sample.guidance,
            seed=config.seed,
            device=device,
        )
        for step in sorted({min(left), max(left)})
    }
    return emoji_distances(data, sets, images, config.seed)


def _plot(found: Findings) -> None:
    # matplotlib takes a second to import; only a report pays for it.
    from tread_ssm.plots.colours import save
    from tread_ssm.plots.runs import plot_distances, plot_losses, plot_routing

    folder = found.folder.pictures
    save(plot_losses(found.rows), folder / "losses.png")
    if found.times.share is not None:
        save(plot_routing(found.cost, found.times.share), folder / "routing.png")
    if found.distances is not None:
        save(plot_distances(found.distances.values), folder / "distances.png")
