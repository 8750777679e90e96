"""Runs command lines in forked processes, so that a trial costs no imports, and crashes them.

A server process imports what the scripts import and then forks a child for each trial. The child
can die by SIGKILL before its n-th file operation, or after some seconds. The server itself computes
nothing: a process that has started OpenMP threads may not fork.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRELOADED = (
    "accelerate",
    "diffusers.models.autoencoders.autoencoder_kl",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
    "transformers.models.dinov2.modeling_dinov2",
    "tread_ssm.commands.average",
    "tread_ssm.commands.cache",
    "tread_ssm.commands.convert",
    "tread_ssm.commands.evaluate",
    "tread_ssm.commands.plan",
    "tread_ssm.commands.prepare",
    "tread_ssm.commands.report",
    "tread_ssm.commands.sample",
    "tread_ssm.commands.train",
    "tread_ssm.plots.sweep",
)


@dataclass(frozen=True)
class Trial:
    """One command line.

    Attributes:
        argv: script (relative to the repository) and arguments.
        folder: where it runs; file operations below it are counted.
        crash_at: die before the file operation of this number, from 0. None: never.
        kill_after: die after so many seconds. None: never.
        signal_after: (seconds, signal) to send. None: none.
        limit: seconds after which the command counts as hung.
    """

    argv: tuple[str, ...]
    folder: str
    crash_at: int | None = None
    kill_after: float | None = None
    signal_after: tuple[float, int] | None = None
    limit: float = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: a signal), what it printed, file operations."""

    code: int
    out: str
    err: str
    operations: int
    seconds: float
    hung: bool

    @property
    def last_line(self) -> str:
        """The last line of stderr that says something."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Server:
    """A process that runs trials one after the other; a context manager."""

    def __enter__(self) -> Server:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def run(self, trial: Trial) -> Outcome:
        """Run one trial to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(trial)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answer the trials on standard input, one JSON line each."""
    for name in PRELOADED:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        request["argv"] = tuple(request["argv"])
        outcome = _run(Trial(**request))
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()
    os._exit(0)  # no library has anything to tidy here


def _run(trial: Trial) -> Outcome:
    notes = Path(tempfile.mkdtemp())
    for name in ("out", "err"):  # the child may die before it opens them
        (notes / name).touch()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(trial, notes)
    code, hung, told = None, False, False
    while code is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        spent = time.monotonic() - start
        if pid:
            code = os.waitstatus_to_exitcode(status)
        elif spent > trial.limit or (trial.kill_after is not None and spent > trial.kill_after):
            hung = spent > trial.limit
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            if trial.signal_after is not None and not told and spent > trial.signal_after[0]:
                told = True
                os.kill(child, trial.signal_after[1])
            time.sleep(0.002)
    counted = notes / "operations"
    operations = counted.stat().st_size if counted.is_file() else 0
    texts = [(notes / n).read_text(errors="replace") for n in ("out", "err")]
    shutil.rmtree(notes)
    return Outcome(code, *texts, operations, time.monotonic() - start, hung)


def _child(trial: Trial, notes: Path) -> None:
    """Run the script as `python SCRIPT ...` would, in this forked process; never returns."""
    code = 70
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(notes / name, os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0),
            os.fdopen(1, "w", buffering=1),
            os.fdopen(2, "w", buffering=1),
        )
        os.chdir(trial.folder)
        count_operations(Path(trial.folder), trial.crash_at, notes / "operations")
        script = str(ROOT / trial.argv[0])
        sys.argv = [script, *trial.argv[1:]]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        code = 130
        print("Traceback: KeyboardInterrupt", file=sys.stderr)
    except BaseException:
        import traceback

        code = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def count_operations(folder: Path, crash_at: int | None, counter: Path) -> None:
    """Count what changes files below `folder`, and die before the operation `crash_at`.

    An operation is a rename, an unlink, a folder made or removed, a file opened for writing, and
    a file of tensors written by safetensors or torch.
    """
    log = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    done = 0
    inside = str(folder.resolve())

    def before(path: Any) -> None:
        nonlocal done
        if not isinstance(path, (str, os.PathLike)):
            return
        if not os.path.abspath(os.fspath(path)).startswith(inside):
            return
        if done == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        os.write(log, b".")

    def watched(function: Callable[..., Any], at: int = 0) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before(args[at] if len(args) > at else None)
            return function(*args, **kwargs)

        return call

    def opened(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+"):
                return function(file, mode, *args, **kwargs)
            before(file)
            stream = function(file, mode, *args, **kwargs)
            before(file)  # the file is there, and empty
            return stream

        return call

    for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir"):
        setattr(os, name, watched(getattr(os, name)))
    builtins.open = io.open = opened(io.open)  # type: ignore[assignment]
    _watch_libraries(watched)


def _watch_libraries(watched: Callable[..., Callable[..., Any]]) -> None:
    """Tensor files are written by compiled code, or by functions that others hold by name."""
    import safetensors.torch
    import torch

    replaced = {
        safetensors.torch.save_file: watched(safetensors.torch.save_file, 1),
        torch.save: watched(torch.save, 1),
    }
    for module in [m for n, m in sys.modules.items() if n.startswith(("tread_ssm", "safetensors"))]:
        for name, value in list(vars(module).items()):
            if callable(value) and value in replaced:
                setattr(module, name, replaced[value])
    torch.save = replaced[torch.save]


def python(script: str, *arguments: object) -> tuple[str, ...]:
    """The argv of a Trial."""
    return (script, *map(str, arguments))


__all__: Sequence[str] = ("Outcome", "Server", "Trial", "python")

if __name__ == "__main__":
    serve()
