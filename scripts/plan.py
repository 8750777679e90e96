"""`tread-ssm plan` as a file, for `accelerate launch scripts/plan.py`."""

import sys

from tread_ssm.commands.plan import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
