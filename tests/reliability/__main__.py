"""The whole reliability harness: python -m tests.reliability [kills damage calls lines ...]

Prints a line for each failure and, at the end, the figures that docs/reliability.md holds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import date

import torch
from tqdm import tqdm

from tests.reliability import calls, damage, kills, lines
from tests.reliability.kills import Failure, Harness
from tests.reliability.server import ROOT, Server

Results = Iterable[tuple[str, list[Failure]]]


def parts(harness: Harness, moments: int) -> dict[str, Results]:
    """Every part of the harness by name."""
    return {
        "crash points": kills.crash_points(harness),
        "random moments": kills.random_moments(harness, moments),
        "damaged runs": damage.damages(harness),
        "damaged exports": damage.exports(harness),
        "bad calls": _rows(calls.bad_calls(), lambda row: calls.call(row)),
        "bad command lines": _rows(lines.bad_lines(), lambda row: lines.check(harness, row)),
    }


def _rows(rows: Iterable, answer) -> Iterator[tuple[str, list[Failure]]]:  # type: ignore[no-untyped-def, type-arg]
    for row in rows:
        failure = answer(row)
        yield row.name, [] if failure is None else [failure]


def _where() -> str:
    """The date, the commit and the machine."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    cores = f"{os.cpu_count()} cores of {platform.machine()}"
    return f"{date.today()}, commit {commit}, {platform.system()}, {cores}, {versions}"


def main() -> int:
    """Run the parts that are named, or all; the exit code is 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help="beginnings of names of parts; default: all")
    parser.add_argument("--moments", type=int, default=50, help="random moments a command (50)")
    arguments = parser.parse_args()
    root = kills.temporary_root()
    figures: list[str] = []
    failed = 0
    with Server() as server:
        harness = Harness(server, root)
        for name, results in parts(harness, arguments.moments).items():
            if arguments.parts and not any(name.startswith(p) for p in arguments.parts):
                continue
            start, count, bad = time.monotonic(), 0, 0
            for what, failures in tqdm(results, desc=name, unit="trial", leave=False):
                count += 1
                bad += bool(failures)
                for failure in failures:
                    tqdm.write(f"FAILED {name}: {what}: {failure.seen}")
            minutes = (time.monotonic() - start) / 60
            figures.append(f"| {name} | {count} | {count - bad} | {minutes:.1f} |")
            failed += bad
    shutil.rmtree(root, ignore_errors=True)
    print(f"\n{_where()}\n\n| part | trials | as it must be | minutes |\n|---|---|---|---|")
    print("\n".join(figures))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
