"""Where a figure comes from: commit, machine, versions and command; where it is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tread_ssm.files import replacing


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


def measurement() -> dict[str, Any]:
    """What a table of timings says of itself: `origin`, date, command, threads, load and GPU."""
    return {
        **origin(),
        "date": date.today().isoformat(),
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_results(folder: Path, name: str, found: dict[str, Any], text: str) -> None:
    """Print a table and write it to NAME.md, and what it was made of to NAME.json."""
    print(text)
    for suffix, content in ((".json", json.dumps(found, indent=1) + "\n"), (".md", text)):
        with replacing(folder / f"{name}{suffix}") as file:
            file.write_text(content, encoding="utf-8")
