"""SIGTERM and SIGINT as a request to stop after the current step."""

from __future__ import annotations

import signal
from types import FrameType

from accelerate import Accelerator

# Asking the other processes waits for the device, so it is done once in so many steps.
_ASK_EVERY = 10


class StopSignals:
    """Inside `with`, remembers the first signal; the second one has its usual effect."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop(self, accelerator: Accelerator, step: int) -> bool:
        """Whether to stop now; the same answer on every process."""
        if accelerator.num_processes == 1:
            return self.received is not None
        if step % _ASK_EVERY:
            return False
        if self.received is not None:
            accelerator.set_trigger()
        return accelerator.check_trigger()
