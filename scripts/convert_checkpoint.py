"""`tread-ssm convert` as a file, for `accelerate launch scripts/convert_checkpoint.py`."""

import sys

from tread_ssm.commands.convert import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
