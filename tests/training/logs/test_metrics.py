"""metrics.jsonl over crashes and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tread_ssm.training.logs.metrics import MetricsLog, read_metrics


def test_resuming_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, resume_at=0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": step / 7})
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # a crash in the middle of a row
    assert [r["step"] for r in read_metrics(path)] == [10, 20, 30]
    log = MetricsLog(path, resume_at=25)
    log.write({"step": 30, "loss": 0.5})
    assert read_metrics(path) == [
        {"step": 10, "loss": 10 / 7},
        {"step": 20, "loss": 20 / 7},
        {"step": 30, "loss": 0.5},
    ]


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n')
    MetricsLog(path, resume_at=0)
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["[1, 2]", "null", '{"step": "3", "loss": 1}', '{"step": 3', "\0"])
def test_lines_that_are_no_rows_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    log = MetricsLog(path, resume_at=2)
    log.write({"step": 3})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
