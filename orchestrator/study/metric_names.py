"""Names of the metrics that a training command reports."""

from __future__ import annotations

from ablatrix.trainer.rundir import loss_csv

HELPER_METRICS = "metrics.jsonl"  # what ablatrix_run writes


CLOCK = "_seconds"  # in a row: since the start, as ablatrix_run says it, or when we have seen it


EPOCH = "epoch"  # a name in a source, whose step count restarts with each epoch


MILLISECONDS = "dt_ms"  # a name for `dt` in milliseconds


NAMES = (*loss_csv.COLUMNS, MILLISECONDS)
