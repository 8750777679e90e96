"""Set runs beside each other: a table, curves and samples from the same noise, as one page.

tread-ssm compare runs/quickstart runs/quickstart_dense

Runs that differ in their seed alone are one row, with a standard deviation. comparison.html holds
everything that it shows; comparison.md is the same without the slider.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tread_ssm.command import parser, run
from tread_ssm.report.compare import write_comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    read = parser("compare", __doc__)
    read.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    read.add_argument(
        "--out",
        type=Path,
        default=Path("runs/comparison"),
        help="folder of the page (runs/comparison)",
    )
    args = read.parse_args(argv)
    return run(lambda: print(write_comparison(args.runs, args.out)))
