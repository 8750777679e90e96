"""What is installed and what is used; paste it into bug reports."""

from __future__ import annotations

from collections.abc import Sequence

from tread_ssm.command import parser, run
from tread_ssm.env import report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser("env", __doc__).parse_args(argv)
    return run(lambda: print(report()))
