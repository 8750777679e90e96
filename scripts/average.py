"""`tread-ssm average` as a file."""

import sys

from tread_ssm.commands.average import main

if __name__ == "__main__":
    sys.exit(main())
