"""A selection of the reliability harness; `python -m tests.reliability` runs all of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import calls, damage, kills, lines
from tests.reliability.commands import COMMANDS
from tests.reliability.kills import Failure, Harness
from tests.reliability.server import ROOT, Server, Trial


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with Server() as server:
        yield Harness(server, tmp_path_factory.mktemp("reliability"))


def failed(results: Iterator[tuple[str, list[Failure]]]) -> list[Failure]:
    return [failure for _, failures in results for failure in failures]


@pytest.mark.parametrize("row", list(calls.bad_calls()), ids=lambda row: row.name)
def test_a_bad_call_is_refused_in_a_sentence(row: calls.Bad) -> None:
    assert calls.call(row) is None


def test_bad_command_lines_are_refused_in_a_sentence(harness: Harness) -> None:
    rows = list(lines.bad_lines())
    assert len(rows) >= 400
    assert not [f for row in rows[::7] if (f := lines.check(harness, row))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_a_crash_before_a_file_operation_changes_nothing(harness: Harness, command) -> None:  # type: ignore[no-untyped-def]
    assert not failed(kills.crash_points(harness, [command], every=9))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_a_signal_at_a_random_moment_changes_nothing(harness: Harness, command) -> None:  # type: ignore[no-untyped-def]
    assert not failed(kills.random_moments(harness, 3, commands=[command]))


def test_damaged_files_are_survived_or_named(harness: Harness) -> None:
    assert not failed(damage.damages(harness, every=11))


def test_a_damaged_export_is_named(harness: Harness) -> None:
    assert not failed(damage.exports(harness))


def test_the_server_tells_a_hang(harness: Harness, tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text("import time\ntime.sleep(60)\n")
    outcome = harness.server.run(Trial((str(script),), str(tmp_path), limit=0.5))
    assert outcome.hung and outcome.code == -9


def test_the_tests_are_repeated_in_memory_of_other_bytes() -> None:
    def repeat(*arguments: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "tests.reliability.repeat", "--times", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300)
        return done.returncode, done.stdout.splitlines()

    code, (first, second, end) = repeat("2", "tests/test_tables.py")
    assert (code, end) == (0, "2 of 2 runs passed")
    filled = {line.split("MALLOC_PERTURB_=")[1].split(",")[0] for line in (first, second)}
    assert len(filled) == 2
    code, lines = repeat("1", "tests/no_such_file.py")
    assert (code, lines[-1]) == (1, "0 of 1 runs passed")
