"""Write a run's report anew.

tread-ssm report --run runs/quickstart
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tread_ssm.command import parser, run
from tread_ssm.report.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("report", __doc__)
    read.add_argument("--run", type=Path, required=True, help="the run's folder")
    read.add_argument("--images", type=int, default=256, help="images per set for FD-emoji")
    args = read.parse_args(argv)
    return run(lambda: print(write_report(args.run, args.images)))
