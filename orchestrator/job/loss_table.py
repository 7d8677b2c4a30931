"""A run's loss.csv, made from what its command writes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.job import binary_logs, metric_series, metric_sources
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.files import atomic_write, read_text_strict

MARK = ".metrics.json"


class Numbers:
    """loss.csv of the run, from what the command writes."""

    def __init__(self, run_dir: Path, spec: Mapping[str, Any], attempt: Attempt) -> None:
        source = spec["metrics"]
        self.run_dir, self.attempt = run_dir, attempt
        self.tokens_per_step = spec["tokens_per_step"]
        self.path = Path(source["path"])
        self.follower = make_follower(source)
        self.series = metric_series.Series(source.get("compare"))
        self.started = time.monotonic()

    def catch_up(self) -> None:
        """Read what an earlier life of the command has left since it was last looked at."""
        self.series.load(read_text_strict(self.run_dir / run_files.LOSS))
        mark = run_files.read_json(self.run_dir / MARK) or {}
        self.follower.go_on(mark)
        self.series.go_on(mark)
        for found in self.follower.read():
            self.series.add(found)
        self.series.restart()
        self.series.bad = self.series.resets = 0
        self.series.repeated.clear()
        self.started = time.monotonic()
        self._write()

    def read(self, final: bool = False) -> None:
        """Add what has come to loss.csv. Raises SupersededError where another attempt has the run."""
        clock = time.monotonic() - self.started
        for found in self.follower.read(final):
            self.series.add(found, clock)
        if self.series.changed:
            self._write()

    def _write(self) -> None:
        """loss.csv first: a mark that is older than it makes the same rows be read again, which changes nothing."""
        text = self.series.text(self.tokens_per_step)
        atomic_write(self.run_dir / run_files.LOSS, text, durable=False, guard=self.attempt.require)
        atomic_write(self.run_dir / MARK, json.dumps(self.follower.mark() | self.series.mark()), durable=False)
        self.series.changed = False

    def mend(self) -> None:
        """Write loss.csv anew where the command has put something of its own there."""
        if run_files.read_text(self.run_dir / run_files.LOSS) != self.series.text(self.tokens_per_step):
            self._write()

    @property
    def seconds(self) -> float:
        """Of training, earlier attempts included as far as they count."""
        told = [row["seconds"] for _, row in self.series.complete() if "seconds" in row]
        return max(told, default=time.monotonic() - self.started)


def make_follower(
    source: Mapping[str, Any],
) -> metric_sources.Follower | metric_sources.JsonFile | binary_logs.BinaryFollower:
    """The reader of a source as command.json describes it."""
    path, kind = Path(source["path"]), source["kind"]
    if kind in ("tensorboard", "wandb"):
        return binary_logs.BinaryFollower(path, kind, source["columns"])
    if kind == "jsonl" and path.suffix == ".json":
        return metric_sources.JsonFile(path, metric_sources.JsonLines(source["columns"]))
    labelled = source.get("labelled", False)
    return metric_sources.Follower(
        path, metric_sources.make_parser(kind, source["columns"], source["patterns"], labelled)
    )
