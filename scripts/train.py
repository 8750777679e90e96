"""`tread-ssm train` as a file, for `accelerate launch scripts/train.py`."""

import sys

from tread_ssm.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
