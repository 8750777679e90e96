"""`tread-ssm convert` as a file, for `accelerate launch scripts/convert_checkpoint.py`."""

import sys

from tread_ssm.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
