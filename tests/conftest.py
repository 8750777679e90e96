"""What holds for every test: with `pytest -n`, workers share the cores instead of each using all."""

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported; subprocesses inherit it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
