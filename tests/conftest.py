"""What holds for every test: workers share the cores, and nothing is left of the test before."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported; subprocesses inherit it
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# glibc reads it where a process starts: workers and subprocesses allocate memory full of a byte, so
# that a result that was never written is not 0 by luck. pytest's last lines name it.
_FILLING = "MALLOC_PERTURB_"
os.environ.setdefault(_FILLING, str(random.randrange(1, 256)))


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps one state per process; for it, each test is a process of its own."""
    yield
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"].AcceleratorState
        state._reset_state(reset_partial_state=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"memory was filled by MALLOC_PERTURB_={os.environ[_FILLING]}")
