"""`tread-ssm evaluate` as a file, for `accelerate launch scripts/evaluate.py`."""

import sys

from tread_ssm.commands.evaluate import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
