"""`python -m orchestrator.command RUN_DIR`: what a job starts in place of `python -m trainer`."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.command.runner import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
