"""`tread-ssm prepare` as a file, for `accelerate launch scripts/prepare_latents.py`."""

import sys

from tread_ssm.commands.prepare import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
