"""Names of files in the run folders of a command, which an experiment can run instead of our trainer.

`python -m ablatrix.orchestrator.job RUN_DIR` starts the command, reads its metrics, and writes the files that every run
folder has.
"""

from __future__ import annotations

from ablatrix.trainer.rundir import loss_csv

SPEC = "command.json"  # in a run's folder: the planned command
CONFIG_FILE = "settings.json"  # the settings as nested JSON, for commands that read a file
HELPER = "ablatrix_run.py"  # the module that a training script may import
HELPER_METRICS = "metrics.jsonl"  # written by ablatrix_run
CLOCK = "_seconds"  # in a row: time since the start as reported by ablatrix_run, or when the row was read
EPOCH = "epoch"  # in a source whose step count restarts with each epoch
MILLISECONDS = "dt_ms"  # the name of `dt` in milliseconds
METRIC_NAMES = (*loss_csv.COLUMNS, MILLISECONDS)
