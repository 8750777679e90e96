"""What every command line does alike: errors, exit codes, devices, several processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from tread_ssm.errors import ConfigError
from tread_ssm.launcher import launch, must_launch
from tread_ssm.machine import out_of_memory
from tread_ssm.processes import is_main


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `tread-ssm NAME`, whose help is the file's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"tread-ssm {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_processes(add_to: argparse.ArgumentParser) -> None:
    """Add the option of commands that share their work among processes; see `launcher.launch`."""
    add_to.add_argument(
        "--processes", type=int, metavar="N", help="start N processes, a GPU each (1)"
    )


def add_extractor(add_to: argparse.ArgumentParser) -> None:
    """Add the options that name a feature extractor; see `evaluation.load_extractor`."""
    add_to.add_argument(
        "--extractor",
        default="inception",
        metavar="NAME",
        help="inception, emoji (up to 32 pixels), timm:MODEL, transformers:MODEL or "
        "MODULE:FUNCTION (inception)",
    )
    add_to.add_argument(
        "--weights",
        type=Path,
        help="file of weights of Inception (default: in torch.hub's folder) or of a model of timm "
        "(default: from the Hub)",
    )


def run(work: Callable[[], int | None]) -> int:
    """Do the work of a command; returns its exit code.

    0 or what the work returns. 2 where an argument or a file cannot be used or the memory
    does not suffice, 130 after Ctrl-C; each with a sentence instead of a traceback.
    """
    try:
        code = work()
    except (ValueError, OSError) as error:  # ConfigError among them
        fail(error)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        fail(f"the memory does not suffice; compute less at once. ({reason})")
        return 2
    except KeyboardInterrupt:
        say("Interrupted; rerun the command to resume.", error=True)
        return 130
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code or 0


def run_on(
    processes: int | None, name: str, argv: Sequence[str] | None, work: Callable[[], int | None]
) -> int:
    """As `run`; where so many processes are asked for, start them, and each does the work.

    Args:
        processes: How many; None: this one, or those that a launcher has started.
        name: The subcommand.
        argv: Its arguments; None: those of this process.
        work: What each process does; returns the exit code.
    """
    line = [name, *(sys.argv[1:] if argv is None else argv)]

    def do() -> int | None:
        if processes is not None and processes < 1:
            raise ConfigError(f"--processes is {processes}; it must be at least 1.")
        return launch(processes, line) if must_launch(processes) else work()

    return run(do)


def fail(error: object) -> None:
    """Say what went wrong. Each process does: it may have gone wrong on one of them alone."""
    where = "" if is_main() else f" (process {os.environ['RANK']})"
    print(f"error{where}: {error}", file=sys.stderr)


def say(message: object, *, error: bool = False) -> None:
    """Print from the first process alone."""
    if is_main():
        print(message, file=sys.stderr if error else sys.stdout)


def check_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raises ConfigError where one of these arguments is given and smaller."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is {value}; it must be at least {least}.")


def device(wanted: str | None) -> torch.device:
    """Where to compute; several processes are joined first, each with its own device.

    Args:
        wanted: The user's choice. None: a GPU where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        cpu = wanted == "cpu" or not torch.accelerator.is_available()
        # A process that is done waits for the slowest one, however long that takes.
        return torch.device(PartialState(cpu=cpu, timeout=timedelta(days=7)).device)
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}).") from None
