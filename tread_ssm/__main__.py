"""The console command: `tread-ssm NAME ...`, or `python -m tread_ssm NAME ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from tread_ssm.commands import names, run_command, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, and 2 where there is no such subcommand."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in names():
        return run_command(name, arguments[1:])
    if name == "--version":
        print(f"tread_ssm {version('tread_ssm')}")
        return 0
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name:
        print(f"error: {name!r} is no command of tread-ssm.\n", file=sys.stderr)
    print(_usage(), file=sys.stderr)
    return 2


def _usage() -> str:
    known = names()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {summary(name)}" for name in known]
    return "\n".join(
        [
            "usage: tread-ssm COMMAND ...",
            "",
            *lines,
            "",
            "tread-ssm COMMAND --help tells about one.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
