"""`tread-ssm cache` as a file, for `accelerate launch scripts/cache_features.py`."""

import sys

from tread_ssm.commands.cache import main

if __name__ == "__main__":
    sys.exit(main())
