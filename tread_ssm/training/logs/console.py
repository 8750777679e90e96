"""train.log: what the console said while a run trained, with the time of each line."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from tread_ssm.errors import ConfigError

LARGEST = 5_000_000  # bytes; then it becomes train.log.1, in place of the one before
BAR_EVERY = 60.0  # seconds between two states of a progress bar


@contextmanager
def console_log(path: Path) -> Iterator[None]:
    """Append what is printed inside, to stdout and stderr, to a file as well.

    A progress bar is noted once a minute and at its end. An error that ends the run is noted as
    the console shows it afterwards. A file that cannot be written, or no longer, loses lines, but
    stops nothing.

    Args:
        path: The file; its folder is made where it is missing.
    """
    file = _File(path, maxBytes=LARGEST, backupCount=1, delay=True, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    out, err = _Copied(sys.stdout, file), _Copied(sys.stderr, file)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    except Exception as error:
        told = f"error: {error}" if isinstance(error, ConfigError) else traceback.format_exc()
        for line in told.splitlines():
            err.note(line)
        raise
    finally:
        out.end()
        err.end()
        file.close()


class _File(RotatingFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # whoever needs the folder says what is wrong with it
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk is met, and named, by what cannot do without."""


class _Copied:
    """A stream of the console that notes its lines in a file, too."""

    def __init__(self, console: TextIO, file: logging.Handler) -> None:
        self._console, self._file = console, file
        self._line = ""
        self._noted = -BAR_EVERY

    def write(self, text: str) -> int:
        self._console.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.note(line)
        # What stands before a carriage return is overwritten: a bar's earlier states.
        before, _, self._line = self._line.rpartition("\r")
        if before.strip() and time.monotonic() - self._noted >= BAR_EVERY:
            self._noted = time.monotonic()
            self.note(before)
        return len(text)

    def end(self) -> None:
        """Note a line that was not ended."""
        self.note(self._line)

    def note(self, line: str) -> None:
        """Write one line into the file alone."""
        shown = line.rstrip("\r").rpartition("\r")[2].rstrip()
        if shown:
            record = logging.LogRecord("train", logging.INFO, "", 0, shown, None, None)
            self._file.handle(record)

    def __getattr__(self, name: str) -> Any:  # isatty, flush, fileno, encoding ...
        return getattr(self._console, name)
