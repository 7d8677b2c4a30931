"""Fill the offline cache on the login node: `python cache_warm.py --help` (or `make warm-cache`)."""

import os
import sys


def main() -> int:
    """Run the verb warm-cache with Ablatrix's own packages, whatever the working folder and PYTHONPATH hold."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from trainer.program import prefer_own_packages

    del sys.path[0]
    prefer_own_packages()
    from trainer.offline.warm import main as warm

    return warm()


if __name__ == "__main__":
    sys.exit(main())
