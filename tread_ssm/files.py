"""Files that are there whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tread_ssm.errors import ConfigError

MANIFEST = "manifest.json"
_HEX = "[0-9a-f]"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write; afterwards it takes the place of `path`, or is removed on failure.

        with replacing(folder / "plot.png") as temporary:
            figure.savefig(temporary)

    The temporary file is empty and lies in the same folder, which is made where it is missing.
    Its name is hidden, cannot be guessed (so that no link waits under it) and has the suffix of
    `path`. It is flushed to the disk before it is renamed. Permissions follow the umask, whatever
    the library that wrote it chose. What a killed process left of an earlier attempt to write
    `path` is removed.

    Args:
        path: The file to write. A link is replaced, not followed.

    Raises:
        OSError: `path` is something other than a file, or cannot be written.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file; remove it or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    name = f".{_short_digest(path.name)}-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}"
    temporary = path.with_name(f"{name}.tmp{path.suffix}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # fails where a link has the name
    try:
        descriptor = os.open(temporary, flags, 0o666)
        mode = os.fstat(descriptor).st_mode
        os.close(descriptor)
        yield temporary
        os.chmod(temporary, mode)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        temporary.unlink(missing_ok=True)
        raise


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files of `replacing` that a killed process left in a folder.

    Only where no other process writes into the folder.
    """
    for path in folder.glob(f".{_HEX * 8}-{_HEX * 8}-*-{_HEX * 16}.tmp*"):
        path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files for `path` whose processes on this machine are dead."""
    mine = f".{_short_digest(path.name)}-{_machine()}-*-{_HEX * 16}.tmp*"
    for old in path.parent.glob(mine):
        if not psutil.pid_exists(int(old.name.split("-")[2])):
            old.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Which machine, or container, the numbers of processes belong to."""
    name = socket.gethostname()
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return _short_digest(name)


def _short_digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all. Raises OSError where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all. Raises OSError where it cannot be written."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Record the checksums of these files in the folder's manifest.json."""
    write_json(folder / MANIFEST, {"sha256": {name: checksum(folder / name) for name in names}})


def check_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with the folder's manifest.json.

    Args:
        folder: Where the files and their manifest are.
        names: The files to compare; None: all that the manifest names.

    Raises:
        ConfigError: A file cannot be read, or is not as it was written.
    """
    path = folder / MANIFEST
    try:
        sums = read_json(path)["sha256"]
        wrong = [name for name in names or sums if checksum(folder / name) != sums[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{folder} cannot be compared with its {MANIFEST} ({reason}).") from None
    if wrong:
        raise ConfigError(
            f"{folder / wrong[0]} is damaged: its SHA-256 is not the one in {MANIFEST}."
        )
