"""`python -m ablatrix.orchestrator.job RUN_DIR`: what a job starts instead of `python -m ablatrix.trainer`."""

from __future__ import annotations

import sys
from pathlib import Path

from ablatrix.orchestrator.job.command_runner import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
