"""Every file of an interrupted run, damaged in every way: it is survived exactly, or named.

A run of 12 steps stops after its checkpoint of step 8. One file is damaged and the command typed
again. Either the result is that of an undisturbed run, or a sentence names the damaged file (or its
folder). A run that ends otherwise, and says nothing, is a silent failure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.reliability.commands import COMMANDS, digest
from tests.reliability.kills import Failure, Harness
from tests.reliability.server import Trial, python

TRAIN = COMMANDS[0]
# Nothing is computed from these: a run may write them anew or go on with them as they are.
SHOWN = (".png", ".jsonl", ".log", ".md")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) * 3 // 4] ^= 0x10
    path.write_bytes(content)


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _later_version(path: Path) -> None:
    """A key that this version does not know, where a file has keys; else another file's bytes."""
    if path.suffix == ".json":
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({**tree, "a_later_version": 1}))
    elif path.suffix == ".yaml":
        path.write_text(path.read_text() + "a_later_version: 1\n")
    else:
        path.write_bytes(b"another format" * 50)


def _other_step(path: Path) -> None:
    """A step that the run never reached, where a file says one."""
    if path.suffix == ".json" and "step" in (tree := json.loads(path.read_text())):
        path.write_text(json.dumps({**tree, "step": 7}))
    else:
        _flip(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "empty": _empty,
    "zeros": _zeros,
    "one bit flipped": _flip,
    "missing": _missing,
    "a folder in its place": _folder,
    "of a later version": _later_version,
    "another step": _other_step,
}


# Where the export is not there, or older, the newest checkpoint lends the weights.
OF_THE_CHECKPOINT = (
    ("ema.safetensors", "missing"),
    ("ema.safetensors", "a folder in its place"),
    ("config.json", "another step"),
)


def interrupted(harness: Harness) -> Path:
    """A folder with a run that stopped between its checkpoints of step 8 and 12."""
    operations = harness.undisturbed[TRAIN.name][1].operations
    for n in range(operations - 1, 0, -1):
        folder = harness.fresh()
        harness.server.run(Trial(TRAIN.argv, str(folder), crash_at=n))
        checkpoints = {p.name for p in (folder / "runs/tiny/checkpoints").glob("*")}
        if checkpoints == {"step-0000004", "step-0000008"}:
            return folder
        shutil.rmtree(folder)
    raise AssertionError("no crash point leaves the checkpoints of steps 4 and 8 alone")


def damages(harness: Harness, every: int = 1) -> Iterator[tuple[str, list[Failure]]]:
    """Each file x each damage (or every so many-th pair): (what was done, failures)."""
    stopped = interrupted(harness)
    run = stopped / "runs/tiny"
    files = sorted(str(p.relative_to(stopped)) for p in run.rglob("*") if p.is_file())
    pairs = [(file, name) for file in files for name in DAMAGES]
    for file, name in pairs[::every]:
        folder = harness.fresh()
        shutil.copytree(run, folder / "runs/tiny")
        before = (folder / file).read_bytes()
        DAMAGES[name](folder / file)
        text = f"{file}: {name}"
        found = []
        if not (folder / file).is_file() or (folder / file).read_bytes() != before:
            found = list(_typed_again(harness, folder, file, text))
        yield text, found
        shutil.rmtree(folder)
    shutil.rmtree(stopped)


def _typed_again(harness: Harness, folder: Path, file: str, text: str) -> Iterator[Failure]:
    outcome = harness.server.run(Trial(TRAIN.argv, str(folder)))
    if outcome.hung:
        yield Failure(TRAIN.name, text, "hung")
    elif "Traceback" in outcome.err:
        yield Failure(TRAIN.name, text, f"traceback: {outcome.last_line}")
    elif outcome.code != 0:
        named = Path(file).name in outcome.err or Path(file).parent.name in outcome.err
        if not named:
            yield Failure(TRAIN.name, text, f"the file is not named: {outcome.last_line}")
    elif not file.endswith(SHOWN):
        same = digest(folder, ("runs/tiny/ema.safetensors",))
        if same != _undisturbed_weights(harness):
            yield Failure(TRAIN.name, text, "silent: other weights")


def _undisturbed_weights(harness: Harness) -> str:
    key = "weights"
    if key not in harness.undisturbed:
        folder = harness.fresh()
        outcome = harness.server.run(Trial(TRAIN.argv, str(folder)))
        harness.undisturbed[key] = digest(folder, ("runs/tiny/ema.safetensors",)), outcome
        shutil.rmtree(folder)
    return harness.undisturbed[key][0]


def exports(harness: Harness) -> Iterator[tuple[str, list[Failure]]]:
    """Each file of a finished run, damaged, before images are sampled from it."""
    command = COMMANDS[1]
    argv = python("scripts/sample.py", "--run", "given/tiny", "--steps", 1, "--device", "cpu")
    for file in ("given/tiny/ema.safetensors", "given/tiny/config.json"):
        for name, damage in DAMAGES.items():
            if (Path(file).name, name) in OF_THE_CHECKPOINT:
                continue
            folder = harness.fresh()
            damage(folder / file)
            text = f"{file}: {name}"
            outcome = harness.server.run(Trial(argv, str(folder)))
            found = []
            if outcome.hung or "Traceback" in outcome.err:
                found.append(Failure(command.name, text, outcome.last_line or "hung"))
            elif outcome.code == 0:
                found.append(Failure(command.name, text, "silent: images of damaged weights"))
            elif Path(file).name not in outcome.err and "given/tiny" not in outcome.err:
                found.append(Failure(command.name, text, f"not named: {outcome.last_line}"))
            yield text, found
            shutil.rmtree(folder)
