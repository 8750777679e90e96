"""`tread-ssm cache` as a file, for `accelerate launch scripts/cache_features.py`."""

import sys

from tread_ssm.commands.cache import main
from tread_ssm.launcher import announced

if __name__ == "__main__":
    sys.exit(announced(main()))
