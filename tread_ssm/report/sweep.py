"""A run that is measured with every value of one or two options: what `tread-ssm evaluate` keeps.

Rows are found one by one and written at once, so that an interrupted sweep resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError
from tread_ssm.evaluation.evaluator import Evaluator
from tread_ssm.evaluation.metrics import title_of
from tread_ssm.files import MANIFEST, checksum, read_json, write_json, write_text
from tread_ssm.pretrained import Description, load_export
from tread_ssm.sampling.adm_npz import check_same
from tread_ssm.training.averages.posthoc import load_average

Point: TypeAlias = tuple[float, ...]
"""A value of each option that is swept."""
Rows: TypeAlias = dict[Point, Mapping[str, float]]
"""The metrics at each point, by name."""


class SweptWeights:
    """The weights that a sweep samples from: the run's, or its averages of any width."""

    def __init__(self, run: RunFolder, step: int | None, device: torch.device | str) -> None:
        """`step`: of a checkpoint, or where averages end. None: the last one."""
        self._run, self._step, self._device = run, step, device
        self._last: tuple[float | None, tuple[nn.Module, Description]] | None = None

    def __call__(self, width: float | None) -> tuple[nn.Module, Description]:
        """The model and its description; those of the call before are not loaded again."""
        if self._last is None or self._last[0] != width:
            if width is None:
                loaded = load_export(self._run.weights(self._step), self._device)
            else:
                loaded = load_average(self._run, width, self._step, self._device)
            self._last = width, loaded
        return self._last[1]

    def checksums(self, averaged: bool) -> list[str]:
        """Of one file of weights, or of all that are averaged."""
        if not averaged:
            return [checksum(self._run.weights(self._step) / "ema.safetensors")]
        found = self._run.snapshots()
        end = max(found) if self._step is None else self._step
        return [checksum(path / MANIFEST) for step, path in found.items() if step <= end]


def read_rows(path: Path, record: Mapping[str, Any]) -> Rows:
    """The rows that an earlier, equal sweep has written; none where there is no file.

    Raises:
        ConfigError: The file holds something else, or was made with other settings.
    """
    if not path.exists():
        return {}
    try:
        held = read_json(path)
        before = held["record"]
        rows = {tuple(v) if isinstance(v, list) else (v,): row for v, row in held["rows"]}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is there already and holds something else; name another file."
        ) from None
    check_same(before, json.loads(json.dumps(record)), f"{path} holds results that were made")
    return rows


def write_rows(path: Path, record: Mapping[str, Any], rows: Rows) -> None:
    """Write the rows, in rising order, and what they depend on; a single value stands alone."""
    held = [(p[0] if len(p) == 1 else p, row) for p, row in sorted(rows.items())]
    write_json(path, {"record": record, "rows": held})


def write_table_and_plot(
    path: Path, swept: Mapping[str, Sequence[float]], rows: Rows, evaluator: Evaluator
) -> str:
    """Write both beside the file of the rows; returns the table.

    Args:
        path: The file of the rows.
        swept: The values of one or two options, in rising order.
        rows: The metrics at every point of their product.
        evaluator: What measured them.
    """
    from tread_ssm.plots.colours import save  # matplotlib, which takes a second to import
    from tread_ssm.plots.sweep import plot_heat_maps, plot_sweep

    points = list(product(*swept.values()))
    table = evaluator.table(
        tuple(swept), [([f"{v:g}" for v in point], rows[point]) for point in points]
    )
    write_text(path.with_suffix(".md"), table + "\n")
    titles = {m: title_of(m, evaluator.extractor.name) for m in evaluator.metrics}
    found = {title: [rows[p][m] for p in points] for m, title in titles.items()}
    names, values = [name.replace("_", " ") for name in swept], list(swept.values())
    if len(swept) == 1:
        figure = plot_sweep(names[0], values[0], found)
    else:
        n = len(values[1])
        tables = {m: [v[i : i + n] for i in range(0, len(v), n)] for m, v in found.items()}
        figure = plot_heat_maps((names[0], names[1]), (values[0], values[1]), tables)
    save(figure, path.with_suffix(".png"))
    return table
