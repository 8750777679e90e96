"""metrics.jsonl: one line a logged step, none doubled or lost over resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tread_ssm.files import write_text


class MetricsLog:
    """Appends rows; each has a `step`, the number of steps done."""

    def __init__(self, path: Path, resume_at: int) -> None:
        """Rows behind step `resume_at`, and a row that a crash cut short, are dropped first."""
        self.path = path
        kept = [line for row, line in _rows(path) if row["step"] <= resume_at]
        write_text(path, "".join(line + "\n" for line in kept))

    def write(self, row: dict[str, Any]) -> None:
        """Append a row at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines that a crash or a disk has damaged are left out."""
    return [row for row, _ in _rows(path)]


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append((row, line))
    return rows
