"""train.log holds what the console said, and what it said stays as it was."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from tread_ssm.commands import train
from tread_ssm.errors import ConfigError
from tread_ssm.training.logs import console
from tread_ssm.training.logs.console import console_log

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def lines(path: Path) -> list[str]:
    """Without their times, which each must have."""
    text = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(TIME, line) for line in text), text
    return [re.sub(TIME, "", line) for line in text]


def test_both_streams_are_noted_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "train.log"
    with console_log(path):
        print("one\ntwo ", end="")
        print("wörld")
        print("three", file=sys.stderr)
        print("unfinished", end="")
    out, err = capsys.readouterr()
    assert (out, err) == ("one\ntwo wörld\nunfinished", "three\n")
    assert lines(path) == ["one", "two wörld", "three", "unfinished"]
    print("after")
    with console_log(path):
        print("resumed")
    assert lines(path)[-2:] == ["unfinished", "resumed"]


def test_a_progress_bar_is_noted_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.log"
    with console_log(path):
        for _ in tqdm(range(50), mininterval=0, desc="usual"):
            pass
    assert 1 <= len(lines(path)) <= 2 and "50/50" in lines(path)[-1]
    monkeypatch.setattr(console, "BAR_EVERY", 0.0)
    with console_log(path):
        for _ in tqdm(range(50), mininterval=0, desc="often"):
            pass
    assert len([line for line in lines(path) if "often" in line]) > 25


def test_an_error_that_ends_the_run_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.log"
    with pytest.raises(ZeroDivisionError), console_log(path):
        print("started")
        print(1 / 0)
    noted = lines(path)
    assert noted[:2] == ["started", "Traceback (most recent call last):"]
    assert "    print(1 / 0)" in noted and noted[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(ConfigError), console_log(path):
        raise ConfigError("no such folder")
    assert lines(path)[len(noted) :] == ["error: no such folder"]
    assert capsys.readouterr() == ("started\n", "")  # whoever catches them says them


def test_a_large_file_makes_way_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LARGEST", 500)
    with console_log(tmp_path / "train.log"):
        for i in range(40):
            print(f"line {i}")
    kept = lines(tmp_path / "train.log.1") + lines(tmp_path / "train.log")
    assert kept == [f"line {i}" for i in range(40 - len(kept), 40)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.log", "train.log.1"]


def test_a_file_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").write_text("a file")
    with console_log(tmp_path / "folder" / "train.log"):
        print("said")
    (tmp_path / "train.log").mkdir()
    with console_log(tmp_path / "train.log"):
        print("said")
    assert capsys.readouterr() == ("said\nsaid\n", "")


def test_the_command_line_writes_it_and_appends_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--config", "quickstart", f"out={tmp_path}", "name=run", "data.size=8"]
    line += ["model.image_size=8", "model.dim=16", "model.depth=3", "train.report=false"]
    line += ["routing.routes.0.start=0", "routing.routes.0.stop=2", "train.batch_size=2"]
    line += ["sample.every=0"]
    assert train.main([*line, "train.steps=2"]) == 0
    first = lines(tmp_path / "run" / "train.log")
    assert first[-1] == f"Done: {tmp_path / 'run'}" and any("2/2" in text for text in first)
    assert train.main([*line, "train.steps=2"]) == 0
    again = lines(tmp_path / "run" / "train.log")
    assert again[: len(first)] == first and "is finished" in again[-1]
    assert "is finished" in capsys.readouterr().out
