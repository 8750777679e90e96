"""Samples of several runs from the same noise and classes, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tread_ssm.errors import ConfigError
from tread_ssm.pretrained import Description, load_export
from tread_ssm.report.arms import Arm
from tread_ssm.report.markdown import literal
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import decoder_at_hand, save_grid, spread

COLUMNS = 8  # images of a class
_ROWS = 6  # classes at most

_TITLE = "## Samples from the same noise"


def paired_samples(arms: Sequence[Arm], path: Path) -> str:
    """Sample the first run of every arm and write the picture; the section that shows it.

    Args:
        arms: What to compare.
        path: The picture, beside the report.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        exports = [load_export(arm.runs[0].folder.weights(), place) for arm in arms]
    except ConfigError as error:
        return f"{_TITLE}\n\nThere are none. {literal(str(error))}"
    asked = {(e.model.channels, e.model.image_size, e.class_names) for _, e in exports}
    if len(asked) > 1:
        return f"{_TITLE}\n\nThere are none: the runs have other classes or sizes of images."
    run = exports[0][1]
    rows = spread(run.model.n_classes, _ROWS) if run.model.n_classes else [0]
    drawn = [_sampled(model, own, rows) for model, own in exports]
    images = np.stack([pictures for pictures, _ in drawn], axis=1)
    classes = [run.class_names[row] if run.class_names else "" for row in rows]
    names = [f"{name}  {arm.name}".strip() for name in classes for arm in arms]
    reasons = list(dict.fromkeys(reason for _, reason in drawn if reason))
    save_grid(path, images.reshape(-1, *images.shape[3:]), names)
    return (
        f"{_TITLE}\n\n![samples of each run, class by class]({path.name})\n\nThe averaged "
        "weights of the first run of each row above, with the recipe of its own section `sample`. "
        "Rows that stand together come from the same noise and class."
        + "".join(f"\n\nLatents are shown undecoded: {literal(r)}" for r in reasons)
    )


def _sampled(
    model: nn.Module, run: Description, rows: Sequence[int]
) -> tuple[np.ndarray, str | None]:
    """(classes, COLUMNS, H, W, 3) uint8, and why latents are not decoded."""
    labels = torch.tensor(rows).repeat_interleave(COLUMNS)
    decode, reason = decoder_at_hand(run.values, next(model.parameters()).device)
    images = generate_all(model, run, run.sample.recipe, labels, seed=0, decode=decode)
    return images.reshape(len(rows), COLUMNS, *images.shape[1:]), reason
