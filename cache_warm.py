"""Fill the offline cache on the login node: `python cache_warm.py --help` (or `make warm-cache`)."""

import sys

from trainer.offline.warm import main

if __name__ == "__main__":
    sys.exit(main())
