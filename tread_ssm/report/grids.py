"""The image grids of a run's stages, and what stands beside its samples: real images.

Shape legend: n images, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.data import Data, PixelValues
from tread_ssm.data.dataset import read_plain
from tread_ssm.pretrained import Description
from tread_ssm.report.page import Stage, Timeline
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import save_grid, spread, to_uint8

_MOST_STAGES = 24  # a page stays small
_MOST_SEARCHED = 20_000  # images that a neighbour is looked for among
_AT_ONCE = 512
_SAMPLES, _NEIGHBOURS = 8, 6


def grids_by_step(folder: RunFolder) -> dict[int, Path]:
    """The image grids that were sampled during training, by steps."""
    found = {_step_of(p): p for p in folder.samples.glob("*.png")}
    return {step: found[step] for step in sorted(s for s in found if s is not None)}


def timeline(
    names: Sequence[str], folders: Sequence[RunFolder], real: Path | None = None
) -> Timeline | None:
    """The grids of several runs beside each other; None where a run has none.

    A run that sampled no grid at a step shows the one before.

    Args:
        names: Of the runs.
        folders: Theirs.
        real: A picture of real images to stand beside every stage.
    """
    grids = [grids_by_step(folder) for folder in folders]
    if not all(grids):
        return None
    steps = sorted({step for own in grids for step in own if step >= max(map(min, grids))})
    stages = []
    for step in (steps[i] for i in spread(len(steps), _MOST_STAGES)):
        pictures = tuple(own[max(s for s in own if s <= step)] for own in grids)
        beside = () if real is None else (real,)
        stages.append(Stage(f"after {step:,} steps", (*pictures, *beside)))
    return Timeline((*names, *(() if real is None else ("real images",))), tuple(stages))


def real_grid(run: Description, data: Data, folder: Path) -> Path | None:
    """Write real.png: training images in the rows of the run's image grids.

    Args:
        run: As load_export gives it.
        data: The training data.
        folder: Where the picture goes.

    Returns:
        The picture; None where the data is no pixels or has none of these classes, or an image
        cannot be read. A class without images has no row, and one with few has white places.
    """
    values, n_classes = data.values, run.model.n_classes
    if not isinstance(values, PixelValues):
        return None
    rows = spread(n_classes, run.sample.classes) if n_classes else [0]
    own = [np.flatnonzero(data.labels == row) if n_classes else np.arange(len(data.labels))
           for row in rows]  # fmt: skip
    names = [run.class_names[r] if n_classes else "" for r in rows]
    there = [(name, found) for name, found in zip(names, own, strict=True) if len(found)]
    if not there:
        return None
    columns = min(run.sample.per_class, max(len(found) for _, found in there))
    try:
        lines = [line_of(data, found, columns) for _, found in there]
    except ValueError:  # a damaged image that training never met
        return None
    save_grid(folder / "real.png", np.concatenate(lines), [name for name, _ in there])
    return folder / "real.png"


def line_of(data: Data, found: np.ndarray, columns: int) -> np.ndarray:
    """The images of a class in a row of a picture.

    Args:
        data: Pixels.
        found: Numbers of the class's images.
        columns: Images of the row.

    Returns:
        (columns, H, W, C) uint8, spread over those found; white where there are fewer.

    Raises:
        ValueError: An image cannot be read.
    """
    values = data.values
    assert isinstance(values, PixelValues)
    images = to_uint8(read_plain(data, found[spread(len(found), columns)]), values)
    white = np.full((columns - len(images), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white])


def nearest_samples(model: nn.Module, run: Description, data: Data, folder: Path) -> bool:
    """Write neighbours.png: samples, each with the training images nearest to it.

    Args:
        model, run: As load_export gives them.
        data: The training data.
        folder: Where the picture goes.

    Returns:
        Whether there is such a picture: the data must be pixels, and hold enough images.
    """
    values = data.values
    if not isinstance(values, PixelValues) or len(data.labels) < _NEIGHBOURS:
        return False
    rows = spread(run.model.n_classes, _SAMPLES) if run.model.n_classes else [0] * _SAMPLES
    samples = generate_all(
        model,
        run,
        run.sample.recipe,
        torch.tensor(rows),
        seed=0,
        decode=lambda x: to_uint8(x, values),
    )
    beside = np.concatenate([samples[:, None], nearest_images(data, samples, _NEIGHBOURS)], axis=1)
    names = [run.class_names[row] if run.class_names else "" for row in rows]
    pixels = beside.reshape(-1, *samples.shape[1:])
    head = ("sample", "nearest training images", *[""] * (_NEIGHBOURS - 1))
    save_grid(folder / "neighbours.png", pixels, names, head)
    return True


def nearest_images(data: Data, images: np.ndarray, count: int) -> np.ndarray:
    """The training images nearest to each image, by the squared difference of their pixels.

    Args:
        data: The training data, pixels. Of a large set the first images are searched.
        images: (n, H, W, 3) uint8.
        count: Neighbours of each.

    Returns:
        (n, count, H, W, 3) uint8, the nearest first.
    """
    searched = min(len(data.labels), _MOST_SEARCHED)
    wanted = torch.from_numpy(images).flatten(1).float()
    parts = []
    for start in range(0, searched, _AT_ONCE):
        index = np.arange(start, min(start + _AT_ONCE, searched))
        real = torch.from_numpy(to_uint8(read_plain(data, index), data.values)).flatten(1).float()
        parts.append(torch.cdist(wanted, real))
    nearest = torch.cat(parts, dim=1).topk(count, largest=False).indices
    found = to_uint8(read_plain(data, nearest.flatten().numpy()), data.values)
    return rearrange(found, "(n k) h w c -> n k h w c", k=count)


def _step_of(path: Path) -> int | None:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits) if digits else None
