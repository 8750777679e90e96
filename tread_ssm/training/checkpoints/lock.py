"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from tread_ssm.config.run_folder import RunFolder
from tread_ssm.errors import ConfigError


@contextmanager
def locked(folder: RunFolder, patience: float = 10.0) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends, however it does.

    Args:
        folder: Of the run; made where it is missing.
        patience: Seconds to wait for a holder that is about to end.

    Raises:
        ConfigError: Another process holds it.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder.lock), folder.lock.with_suffix(".holder")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise ConfigError(
            f"{folder.path} is being trained by {name}; wait for it, stop it, or choose another "
            f"name."
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
