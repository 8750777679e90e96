"""The report of a run: `report.md` in its folder, with pictures in `report/`, and as a page.

Everything in it is read from the run folder, or measured when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tread_ssm.config.run import RunConfig
from tread_ssm.config.strict import plain
from tread_ssm.data import EmojiData, Pixels
from tread_ssm.errors import ConfigError
from tread_ssm.files import read_json, write_text
from tread_ssm.pretrained import load_export
from tread_ssm.report.grids import grids_by_step, nearest_samples, real_grid, timeline
from tread_ssm.report.history import History
from tread_ssm.report.measure import Distances, emoji_distances, generate_from, step_times
from tread_ssm.report.page import write_page
from tread_ssm.report.sections import Findings, sections
from tread_ssm.training.cost import training_cost


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
    history = History.read(run)
    folder, config = history.folder, history.config
    left = folder.checkpoints()
    if not left:
        raise ConfigError(
            f"{run} holds no checkpoint yet; train it until the first one "
            f"(train.save_every={config.train.save_every})."
        )
    for checkpoint in left.values():
        _check_described(checkpoint / "config.json", config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = config.data.open()
    distances = None
    model, export = load_export(left[max(left)], device)
    neighbours = nearest_samples(model, export, data, folder.pictures)
    times = step_times(config, data, model)
    if isinstance(config.data, EmojiData) and isinstance(data, Pixels):
        distances = _distances(config, data, left, images, device)
    found = Findings(
        history=history,
        data=data,
        checkpoints=len(left),
        cost=training_cost(config),
        times=times,
        distances=distances,
        neighbours=neighbours,
        device=device,
    )
    _plot(found)
    text = "\n\n".join(sections(found)) + "\n"
    write_text(folder.report, text)
    real = real_grid(export, data, folder.pictures) if grids_by_step(folder) else None
    write_page(folder.page, text, timeline([config.name], [folder], real))
    return folder.report


def _check_described(path: Path, config: RunConfig) -> None:
    """Raises ConfigError where a checkpoint describes another model than the run's."""
    try:
        model = read_json(path)["model"]
    except (OSError, ValueError, LookupError, TypeError) as error:
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
    from tread_ssm.plots.runs import plot_distances, plot_evals, plot_losses, plot_routing

    folder = found.history.folder.pictures
    save(plot_losses(found.history.rows), folder / "losses.png")
    if found.times.share is not None:
        save(plot_routing(found.cost, found.times.share), folder / "routing.png")
    if found.distances is not None:
        save(plot_distances(found.distances.values), folder / "distances.png")
    if found.history.evals:
        save(plot_evals(found.history.evals, found.history.measures), folder / "evaluations.png")
