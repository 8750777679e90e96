"""What holds for every test: workers share the cores, and fresh memory is never clean."""

from __future__ import annotations

import os
import random

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported; subprocesses inherit it
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# glibc reads it where a process starts: workers and subprocesses allocate memory full of a byte, so
# that a result that was never written is not 0 by luck. The byte is in pytest's first lines.
os.environ.setdefault("MALLOC_PERTURB_", str(random.randrange(1, 256)))


def pytest_report_header() -> str:
    return f"malloc fills the memory of workers and subprocesses: {os.environ['MALLOC_PERTURB_']=}"
