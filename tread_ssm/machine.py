"""What fits on this machine, so that what does not is refused before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from tread_ssm.errors import ConfigError
from tread_ssm.tables import short


def check_memory(least: float, what: str, remedy: str, have: float | None = None) -> None:
    """Refuse what cannot fit into memory.

    Args:
        least: Bytes that it takes at least.
        what: What takes them, for the message.
        remedy: What to do instead.
        have: Bytes that there are. None: what this machine has free, swap included.

    Raises:
        ConfigError: There is less.
    """
    if have is None:
        have = psutil.virtual_memory().available + psutil.swap_memory().free
    if least > have:
        raise ConfigError(
            f"{what} would take at least {short(least, 'B')} of memory, but there are "
            f"{short(have, 'B')}. {remedy}"
        )


def check_disk(folder: Path, least: float, what: str, remedy: str) -> None:
    """Refuse what cannot fit on the disk of a folder, which need not be there yet.

    Args:
        folder: Where it would be written.
        least: Bytes that it takes at least.
        what: What takes them, for the message.
        remedy: What to do instead.

    Raises:
        ConfigError: There are fewer bytes free.
    """
    here = folder.absolute()
    while not here.is_dir():
        here = here.parent
    free = shutil.disk_usage(here).free
    if least > free:
        raise ConfigError(
            f"{what} would take at least {short(least, 'B')} of disk, but {here} has "
            f"{short(free, 'B')} free. {remedy}"
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a device, or on the CPU, where torch has no error for it."""
    from torch import OutOfMemoryError  # not for commands that need no torch

    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, (OutOfMemoryError, MemoryError))
