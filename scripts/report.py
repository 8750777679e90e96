"""`tread-ssm report` as a file, for `accelerate launch scripts/report.py`."""

import sys

from tread_ssm.commands.report import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
