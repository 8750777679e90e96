"""Write a run's report anew: python scripts/report.py --run runs/quickstart"""

from __future__ import annotations

import sys
from pathlib import Path

from tread_ssm.command import parser, run
from tread_ssm.report.report import write_report


def main() -> int:
    """Parse arguments, write the report, say where it is."""
    read = parser(__doc__)
    read.add_argument("--run", type=Path, required=True, help="the run's folder")
    read.add_argument("--images", type=int, default=256, help="images per set for FD-emoji")
    args = read.parse_args()
    return run(lambda: print(write_report(args.run, args.images)))


if __name__ == "__main__":
    sys.exit(main())
