"""The files of a run folder: their names, the trainer's exit codes, and JSON readers.

Every file is replaced atomically or grows by whole lines: a reader finds complete records at any time, even after a
kill.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.files import StrPath, read_bytes

CONFIG = "config.json"
ARGS = "args.txt"
LOSS = "loss.csv"
MODEL = "model.pt"
VAL_DOCUMENTS = "val_documents.json"
SUMMARY = "summary.json"
PROVENANCE = "provenance.json"
EVENTS = "events.jsonl"
JOB_OUT = "job.out"
SAMPLES = "samples.txt"
METRICS = "metrics.jsonl"
BEST = "best.pt"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
QUEUE = ".queue"  # the orchestrator's claims on queueing the run
# Files that a person creates in the run folder: write a checkpoint and go on; write a checkpoint and stop.
SAVE_REQUEST = "save"
STOP_REQUEST = "stop"

EXIT_STOPPED = 75  # stopped on request, with a checkpoint written (EX_TEMPFAIL in sysexits.h: try again)
EXIT_SUPERSEDED = 76  # a newer attempt owns the run: nothing to restart
EXIT_LOST_PEER = 77  # another process of the run is gone; only that process knows why


def parse_json(text: str) -> Any:
    """Return the value of a JSON string, None if it is not valid JSON."""
    try:
        value = json.loads(text)
        if "\\u" in text:  # a lone surrogate, which UTF-8 cannot encode
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a text with one object per line, skipping other lines, such as a torn one."""
    for line in text.split("\n"):
        record = parse_json(line) if line else None
        if isinstance(record, dict):
            yield record


def read_json(path: StrPath) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if it cannot be read."""
    try:
        value = parse_json(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_text(path: StrPath) -> str:
    """Return the text of a file, '' if it cannot be read; bytes that are not UTF-8 are replaced."""
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints in a run folder, newest first."""
    return sorted(run_dir.glob("checkpoint-" + "[0-9]" * 8 + ".pt"), reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.stem.rpartition("-")[2])


def list_files(run_dir: Path) -> list[str]:
    """Return the names of the files in a run folder, which are recorded at the end to detect later removals."""
    found = []
    for folder, inner, names in os.walk(run_dir):
        inner[:] = [name for name in inner if not name.startswith(".") or name == QUEUE]
        place = Path(folder).relative_to(run_dir)
        found += [str(place / name) for name in names if not name.startswith(".")]
    return sorted(set(found) - {SAVE_REQUEST, STOP_REQUEST})


def best_is_valid_at(summary: Mapping[str, Any], step: int, eval_interval: int) -> bool:
    """True if a longer run has also made the best evaluation of this finished run by `step`.

    A run may have made its last evaluation only because it ended there.
    """
    best = summary.get("best_iter")
    return isinstance(best, int) and 0 < best <= step and eval_interval > 0 and best % eval_interval == 0
