"""What is here and what is used: `tread-ssm env`. Paste its output into bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from tread_ssm.scan.dispatch import ENVIRONMENT_VARIABLE, choose_backend, unavailable
from tread_ssm.scan.ops import CONV, OPERATIONS, Operation
from tread_ssm.scan.selective.cpu import library

PACKAGES = ("tread_ssm", "torch", "triton", "mamba-ssm", "causal-conv1d")
DTYPES = (torch.float32, torch.bfloat16)


def report() -> str:
    """The lines that the command prints."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    kernels = library()
    lines = [
        f"python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {version_of(name) or 'not installed'}" for name in PACKAGES),
        f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads; "
        f"compiled scan kernels: {kernels[0] if kernels else 'not built'}",
        f"cuda: {_cuda()}",
        f"{ENVIRONMENT_VARIABLE}: {os.environ.get(ENVIRONMENT_VARIABLE) or 'not set'}",
        "",
    ]
    for device in devices:
        for dtype in DTYPES:
            for operation in OPERATIONS:
                if operation is not CONV:  # it has the scan's backends
                    lines += _choice(operation, device, dtype)
    return "\n".join(lines)


def _choice(operation: Operation, device: str, dtype: torch.dtype) -> list[str]:
    try:
        chosen = choose_backend(None, device, dtype, operation)
    except ValueError as error:
        chosen = f"none ({error})"
    lines = [f"{operation.name} on {device}, {str(dtype)[6:]}: {chosen}"]
    for name in operation.backends:
        reason = unavailable(name, torch.device(device), dtype, operation)
        lines.append(f"    {name:<10} {'available' if reason is None else reason}")
    return lines


def version_of(package: str) -> str | None:
    """The installed version of a package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no device"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    print(report())
