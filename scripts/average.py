"""`tread-ssm average` as a file, for `accelerate launch scripts/average.py`."""

import sys

from tread_ssm.commands.average import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
