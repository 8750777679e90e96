"""`tread-ssm evaluate` as a file, for `accelerate launch scripts/evaluate.py`."""

import sys

from tread_ssm.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
