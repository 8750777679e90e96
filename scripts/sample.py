"""`tread-ssm sample` as a file, for `accelerate launch scripts/sample.py`."""

import sys

from tread_ssm.commands.sample import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
