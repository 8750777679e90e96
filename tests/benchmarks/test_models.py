"""The table of training steps by mixer, at toy sizes, and the page that shows it."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.origin import write_results

DOCS = Path(__file__).parents[2] / "docs"


def test_mixers_are_timed_against_mamba1_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = models.mixers(64, batch=1, repeats=1, grids={16: (8, 0), 38: (8, 3)})
    seconds = {(r["tokens"], r["step"], r["mixer"]): r["s"] for r in found["rows"]}
    assert len(seconds) == 2 * 2 * len(models.MIXERS)
    for row in found["rows"]:
        base = seconds[row["tokens"], row["step"], "mamba1"]
        assert row["over_mamba1"] == row["s"] / base
    text = models.mixers_markdown(found)
    write_results(tmp_path, "mixers_cpu", found, text)
    assert capsys.readouterr().out == text + "\n"
    assert json.loads((tmp_path / "mixers_cpu.json").read_text())["rows"] == found["rows"]
    third = seconds[38, "routed", "mamba3"] / seconds[38, "routed", "mamba1"]
    last = (tmp_path / "mixers_cpu.md").read_text().splitlines()[-1]
    assert last.startswith("| 38 | ") and last.endswith(f" | {third:.2f} |")
    assert found["commit"] in text and found["date"] in text and found["machine"] in text


def test_small_and_slow_steps_have_digits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = models.Row("dim", 1, 16, 8, 4.321e-4, 2.5e-4, 0.6, 0.5)
    assert "| dim | 1 | 16 / 8 | 0.432 | 0.25 |" in models.table([row])
    monkeypatch.setattr(models, "images_per_second", lambda step, batch, repeats: 0.01234)
    before = os.environ.get(models.ENVIRONMENT_VARIABLE)
    models.throughput("quickstart", 1, 1, ("cpu",), checkpoint=False)
    assert "| cpu | 0.0123 | 0.0123 |" in capsys.readouterr().out
    assert os.environ.get(models.ENVIRONMENT_VARIABLE) == before  # or later tests run with it


def test_the_page_shows_the_recorded_table_or_says_that_there_is_none(tmp_path: Path) -> None:
    pytest.importorskip("griffe")
    shown = runpy.run_path(str(DOCS / "generated.py"))["recorded"]
    assert "Nothing is recorded yet" in shown("mixers_cpu", tmp_path)
    (tmp_path / "mixers_cpu.md").write_text("a table\n")
    assert shown("mixers_cpu", tmp_path) == "a table\n"
