"""Write a run's report anew: python scripts/report.py --run runs/quickstart"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tread_ssm.errors import ConfigError
from tread_ssm.report.report import write_report


def main() -> int:
    """Parse arguments, write the report, say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--images", type=int, default=256, help="images per set for FD-emoji")
    options = parser.parse_args()
    try:
        print(write_report(options.run, options.images))
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
