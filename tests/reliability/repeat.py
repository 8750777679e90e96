"""The tests, many times, each time in memory that malloc fills with another byte.

    python -m tests.reliability.repeat --times 20 [paths and options of pytest]

glibc fills fresh and freed memory with a byte that follows from MALLOC_PERTURB_. Hashes of strings,
and so the order of sets, differ each time as well.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

from tests.reliability.server import ROOT


def main() -> int:
    """Run pytest as often as asked; the exit code is 1 where a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="runs (20)")
    arguments, given = parser.parse_known_args()
    failed = 0
    for i, byte in enumerate(random.sample(range(1, 256), arguments.times)):
        environment = {"MALLOC_PERTURB_": str(byte), "PYTHONHASHSEED": str(random.getrandbits(32))}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-r", "fE", *given],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        minutes = (time.monotonic() - start) / 60
        lines = done.stdout.strip().splitlines()
        settings = ", ".join(f"{k}={v}" for k, v in environment.items())
        print(f"{i + 1}: {settings}: {lines[-1]} ({minutes:.1f} minutes)", flush=True)
        if done.returncode:
            failed += 1
            print(*(x for x in lines if x.startswith(("FAILED", "ERROR"))), sep="\n", flush=True)
    print(f"{arguments.times - failed} of {arguments.times} runs passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
