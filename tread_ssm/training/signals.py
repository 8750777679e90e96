"""SIGTERM and SIGINT as a request to stop after the current step.

`accelerate launch` for one process ends on SIGTERM without handing it on; the process that it
started notices that its launcher is gone, and stops as well.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import torch
from accelerate import Accelerator

# Asking the other processes waits for the device: after so many seconds or steps, what is first.
_ASK_SECONDS = 2.0
_ASK_STEPS = 10
# Ctrl-C reaches a process twice where a launcher hands it on; this is no second request.
_ECHO_SECONDS = 2.0
# Set by `accelerate launch` and by torchrun.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


class StopSignals:
    """Inside `with`, remembers the first signal; a later one has its usual effect."""

    def __init__(self, accelerator: Accelerator, step: int = 0) -> None:
        """`step`: steps done."""
        self.received: int | None = None
        self._accelerator = accelerator
        self._launcher = os.getppid() if any(k in os.environ for k in _LAUNCHED) else None
        self._at = 0.0
        self._asked = (step, time.monotonic())
        self._next = step + 1
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = number, now
        elif now - self._at > _ECHO_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.raise_signal(number)

    def stop(self, step: int) -> int | None:
        """The signal to stop for after `step` steps, or None; alike on every process."""
        if self.received is None and self._launcher not in (None, os.getppid()):
            self.received = signal.SIGTERM
        if self._accelerator.num_processes == 1:
            return self.received
        if step < self._next:
            return None
        before, then = self._asked
        now = time.monotonic()
        pace = (now - then) / max(1, step - before)
        mine = torch.tensor([[float(self.received or 0), pace]], device=self._accelerator.device)
        received, slowest = self._accelerator.gather(mine).amax(dim=0).tolist()
        self._asked = (step, now)
        self._next = step + max(1, min(_ASK_STEPS, int(_ASK_SECONDS / max(slowest, 1e-9))))
        return int(received) or None
