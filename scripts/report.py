"""`tread-ssm report` as a file, for `accelerate launch scripts/report.py`."""

import sys

from tread_ssm.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
