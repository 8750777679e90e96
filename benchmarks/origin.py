"""Where a figure comes from: commit, machine and versions."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with "-dirty" where files were changed; "" outside a checkout."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run([*ask, "--exclude=*"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def origin() -> dict[str, str]:
    """Commit, machine and versions, for a row of results."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return {"commit": commit(), "machine": f"{processor()}, {versions}"}
