"""`tread-ssm train` as a file, for `accelerate launch scripts/train.py`."""

import sys

from tread_ssm.commands.train import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
