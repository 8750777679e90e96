"""The file of finished runs: one JSON object a line, appended when the run ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "study.jsonl"
PICTURES = RESULTS.with_suffix("")

Row = Mapping[str, Any]
Key = tuple[str, int, int]
"""Arm, seed, steps."""


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows, in the order in which the runs ended; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, row: Row) -> None:
    """Add a row in one write, so that another process may do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def key(row: Row) -> Key:
    """What tells a row from the others."""
    return row["arm"], row["seed"], row["steps"]


def at(rows: Iterable[Row], arm: str, steps: int) -> dict[int, Row]:
    """The rows of an arm at a number of steps, by seed."""
    found = {r["seed"]: r for r in rows if r["arm"] == arm and r["steps"] == steps}
    return dict(sorted(found.items()))
