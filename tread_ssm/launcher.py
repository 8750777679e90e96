"""A command in several processes, by accelerate's launcher, without its tracebacks.

`accelerate launch` answers a process that ends with exit code 2 by a traceback and exit code 1.
Here the launcher runs inside this process, so that the processes' own exit code remains.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeGuard

from tread_ssm.errors import ConfigError
from tread_ssm.processes import is_main

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def must_launch(processes: int | None) -> TypeGuard[int]:
    """Whether this process has to start the others, rather than being one of them.

    Raises:
        ConfigError: A launcher has started another number of processes.
    """
    started = os.environ.get("WORLD_SIZE")
    if processes is None or started is None:
        return (processes or 1) > 1
    if int(started) != processes:
        raise ConfigError(
            f"--processes {processes}: a launcher has started {started}; leave the option out."
        )
    return False


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m tread_ssm ARGUMENTS` in several processes on this machine.

    Each computes on a GPU of its own, or on the CPU where there is none. SIGINT and SIGTERM are
    handed on, and the processes decide what to do.

    Args:
        processes: How many; at least 2.
        arguments: The command line; they get it as it is.

    Returns:
        The exit code: 0 if all ended so, else that of the first process that failed by itself.
        128 + n where all that failed were ended by the signal n.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    line = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    line += ["--main_process_port", "0", "--module", "tread_ssm", *arguments]
    options = launch_command_parser().parse_args(line)
    options.signals_to_handle = ""  # torch's launcher would kill after 30 seconds what still saves
    with _quiet(), _handed_on() as received:
        try:
            launch_command(options)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _code(codes, received)
    return 0


def announced(code: int) -> int:
    """The exit code of a script, after a word on what `accelerate launch` adds to a failure."""
    if code and is_main() and "ACCELERATE_MIXED_PRECISION" in os.environ:
        print(
            "note: what follows is accelerate's own report; `tread-ssm` prints none.",
            file=sys.stderr,
        )
    return code


def _code(codes: Mapping[int, int], received: Sequence[int]) -> int:
    """One exit code for those of the processes that failed (negative: ended by a signal)."""
    own = [code for code in codes.values() if code > 0]
    if own:
        return own[0]
    rank, code = next(iter(codes.items()))
    if -code not in received:
        name = signal.Signals(-code).name
        print(f"error: process {rank} was ended by {name}; rerun the command.", file=sys.stderr)
    return 128 - code


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the launcher logs; the processes speak for themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _handed_on() -> Iterator[Sequence[int]]:
    """Hand signals on to the processes, however long they take to end; yields those received."""
    import psutil

    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        children = psutil.Process().children()
        if not children:
            raise KeyboardInterrupt
        received.append(number)
        for child in children:
            child.send_signal(number)

    handlers = {number: signal.signal(number, hand_on) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
