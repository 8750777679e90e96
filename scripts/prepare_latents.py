"""`tread-ssm prepare` as a file, for `accelerate launch scripts/prepare_latents.py`."""

import sys

from tread_ssm.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
