"""Commands that die at every file operation, at random moments and by signals, and are typed again.

After the second, undisturbed command the result must be that of a run which nothing disturbed, and
nothing temporary may be left.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.reliability.commands import COMMANDS, Command, copy, digest, left_over, prepare
from tests.reliability.server import Outcome, Server, Trial

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


@dataclass(frozen=True)
class Failure:
    """A disturbance that a command did not survive, and what was seen."""

    command: str
    disturbance: str
    seen: str


class Harness:
    """A server, a folder of inputs, and the digest of each command's undisturbed result."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self._root = root
        self._given = prepare(server, root / "given")
        self._numbers = iter(range(1_000_000))
        self.undisturbed: dict[str, tuple[str, Outcome]] = {}
        for command in COMMANDS:
            folder = self.fresh()
            outcome = server.run(Trial(command.argv, str(folder)))
            assert outcome.code == 0, f"{command.name}: {outcome.err}"
            assert not left_over(folder), f"{command.name} leaves {left_over(folder)}"
            self.undisturbed[command.name] = digest(folder, command.results), outcome
            shutil.rmtree(folder)

    def fresh(self) -> Path:
        """A new folder with everything that the commands are given."""
        return copy(self._given, self._root / str(next(self._numbers)))

    def disturb(self, command: Command, trial: Trial, text: str) -> Iterator[Failure]:
        """Run the trial, then the command undisturbed; yield what is not as it must be."""
        folder = self.fresh()
        first = self.server.run(replace(trial, folder=str(folder)))
        if first.hung:
            yield Failure(command.name, text, "the disturbed command hung")
        if "Traceback" in first.err:
            yield Failure(command.name, text, f"traceback: {first.last_line}")
        again = self.server.run(Trial(command.argv, str(folder)))
        if again.code != 0:
            yield Failure(command.name, text, f"again: exit {again.code}: {again.last_line}")
        elif digest(folder, command.results) != self.undisturbed[command.name][0]:
            yield Failure(command.name, text, "another result")
        elif left_over(folder):
            yield Failure(command.name, text, f"left: {', '.join(left_over(folder)[:3])}")
        shutil.rmtree(folder)


def crash_points(
    harness: Harness, commands: Iterable[Command] = COMMANDS, every: int = 1
) -> Iterator[tuple[str, list[Failure]]]:
    """Die before every file operation (or every so many-th one): (what was done, failures)."""
    for command in commands:
        for n in range(0, harness.undisturbed[command.name][1].operations, every):
            text = f"crash before file operation {n}"
            trial = Trial(command.argv, "", crash_at=n)
            yield f"{command.name}: {text}", list(harness.disturb(command, trial, text))


def random_moments(
    harness: Harness, count: int, seed: int = 0, commands: Iterable[Command] = COMMANDS
) -> Iterator[tuple[str, list[Failure]]]:
    """SIGKILL, SIGTERM and SIGINT at `count` random moments of each command."""
    rng = random.Random(seed)
    for command in commands:
        for i in range(count):
            moment = rng.uniform(0, harness.undisturbed[command.name][1].seconds)
            chosen = SIGNALS[i % len(SIGNALS)]
            text = f"{chosen.name} after {moment:.3f} s"
            trial = Trial(command.argv, "", signal_after=(moment, chosen))
            yield f"{command.name}: {text}", list(harness.disturb(command, trial, text))


def temporary_root() -> Path:
    """A folder for one run of the harness."""
    return Path(tempfile.mkdtemp(prefix="tread-reliability-"))
