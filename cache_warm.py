"""Fill the offline cache on the login node: `python cache_warm.py --help` (or `make warm-cache`)."""

import sys


def main() -> int:
    """Run the verb warm-cache, ignoring any modules in the working folder."""
    from ablatrix.trainer.rundir.program import search_working_folder_last

    search_working_folder_last()
    from ablatrix.trainer.data.warm_cache import main as warm

    return warm()


if __name__ == "__main__":
    sys.exit(main())
