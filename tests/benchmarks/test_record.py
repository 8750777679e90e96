"""The record script, end to end on the embedded emoji at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.origin import processor
from tests.loading import module_of

CONFIG = """
name: tiny
data: {kind: emoji, size: 8}
model: {kind: dit, image_size: 8, channels: 3, n_classes: 9, patch: 2, dim: 32, depth: 4, heads: 2}
objective: {kind: flow, predict: data}
routing: {routes: [{start: 1, stop: 3}]}
train: {steps: 8, batch_size: 16, optimizer: {kind: adamw, lr: 1e-3}, log_every: 4, threads: 1}
sample: {every: 0, steps: 2}
"""


def test_a_row_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = module_of("benchmarks/record.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    command = [
        "--config", "tiny.yaml", "--extractor", "emoji", "--num", "80", "--try-num", "70",
        "--widths", "0.1", "0.2", "--guidance", "1", "2", "--snapshots", "2",
        "--results", str(tmp_path),
    ]  # fmt: skip
    assert record.main(command) == 0
    (row,) = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    tried = json.loads((tmp_path / "runs/tiny/record_choice.json").read_text())["rows"]
    assert len(tried) == 4
    assert [row["width"], row["guidance"]] == min(tried, key=lambda r: r[1]["fid"])[0]
    assert row["distance"] > 0 and row["images"] == 80
    text = (tmp_path / "records.md").read_text()
    assert f"FD-emoji {row['distance']:.3f}" in text and row["commit"] in text
    assert processor() in row["machine"] and row["machine"] in text
    # The same line again finds every stage finished, and its row takes the place of the first.
    # Rows of other commits stay.
    older = row | {"commit": "0000000", "distance": 9.0}
    stale = row | {"distance": 8.0, "date": "2026-01-01"}
    lines = "".join(json.dumps(r) + "\n" for r in (older, stale))
    (tmp_path / "records.jsonl").write_text(lines)
    assert record.main(command) == 0
    kept, again = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    assert kept == older and again == row


def test_the_smallest_distance_is_chosen() -> None:
    record = module_of("benchmarks/record.py")
    assert record.best([[(0.1, 1.0), {"fid": 3.0}], [(0.2, 1.5), {"fid": 2.0}]]) == (0.2, 1.5)
