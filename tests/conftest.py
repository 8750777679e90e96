"""What holds for every test: with `pytest -n`, workers share the cores."""

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported; subprocesses inherit it
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
