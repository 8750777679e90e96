"""What is said, and done, when another process of a run is gone.

Whoever then waits for all processes may wait for very long (NCCL: ten minutes). So a process that
is told to end, or meets an error, looks first whether its neighbours are still there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.processes import gathered
from tread_ssm.training.logs.log import TrainingError

# Seconds that the error of one process gives another to end: its sockets close before it does.
_PATIENCE = 3.0


class Peers:
    """Inside `with`, the end of another process on this machine ends this one with a message.

    `python -m torch.distributed.run` and `accelerate launch` send SIGTERM to the processes that
    are left. A process may not notice, waiting inside a library for one that is no more; a thread
    does.
    """

    def __init__(self, accelerator: Accelerator, run: RunFolder) -> None:
        self._run, self._rank = run, accelerator.process_index
        mine = (self._rank, socket.gethostname(), os.getpid())
        self._others = {
            r: pid for r, host, pid in gathered(mine) if host == mine[1] and r != self._rank
        }
        self._once = threading.Lock()
        self._writing = self._before = -1

    def __enter__(self) -> Peers:
        if self._others:
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if not self._others:
            return
        # A TrainingError is met by all processes alike.
        if isinstance(error, RuntimeError | OSError) and not isinstance(error, TrainingError):
            self._end_without_the_lost(_PATIENCE)
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)

    def lost(self, seconds: float = 0.0) -> list[int]:
        """Ranks of the processes on this machine that have ended; looks for so long."""
        end = time.monotonic() + seconds
        while True:
            gone = [rank for rank, pid in self._others.items() if _has_ended(pid)]
            if gone or time.monotonic() >= end:
                return gone
            time.sleep(0.1)

    def _watch(self, reading: int) -> None:
        # Every signal that Python handles writes its number, whatever the main thread does.
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                self._end_without_the_lost(0.0)
        os.close(reading)

    def _end_without_the_lost(self, seconds: float) -> None:
        gone = self.lost(seconds)
        if not gone:
            return
        self._once.acquire()  # whoever comes second waits for the end that the first one brings
        if self._rank == min({self._rank, *self._others} - set(gone)):
            found = self._run.checkpoints()
            resumes = f"resume from step {max(found)}" if found else "start anew"
            names = " and ".join(map(str, gone))
            print(
                f"\nerror: process {names} of this run ended before its time; the run stops. Its "
                f"own message, if it had one, stands above or below; one that is killed has none "
                f"(often for lack of memory). Rerun the command to {resumes}.",
                file=sys.stderr,
                flush=True,
            )
        # Not sys.exit: on the way out libraries would wait for the one that is gone.
        os._exit(1)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # Linux: ended, but its parent has not looked yet
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in "ZX"
