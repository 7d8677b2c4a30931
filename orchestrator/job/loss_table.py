"""loss.csv of a run whose trainer is a command: written from the command's metrics, continued after a restart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.job.metric_readers import make_reader
from ablatrix.orchestrator.job.metric_series import MetricSeries
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import atomic_write, read_text_strict

if TYPE_CHECKING:
    from ablatrix.orchestrator.job.command_spec import CommandSpec
    from ablatrix.trainer.rundir.attempts import Attempt

POSITION = ".metrics.json"  # in a run's folder: how far the metrics have been read


class LossTable:
    """loss.csv of one run."""

    def __init__(self, run_dir: Path, spec: CommandSpec, attempt: Attempt) -> None:
        self.run_dir, self.attempt = run_dir, attempt
        self.tokens_per_step = spec.tokens_per_step
        self.reader = make_reader(spec.metrics)
        self.series = MetricSeries(spec.metrics.get("compare"))
        self.started = time.monotonic()

    def catch_up(self) -> None:
        """Read what an earlier attempt of the command has written since its metrics were last read."""
        self.series.load(read_text_strict(self.run_dir / run_files.LOSS))
        position = run_files.read_json(self.run_dir / POSITION) or {}
        self.reader.resume(position)
        self.series.resume(position)
        for found in self.reader.read():
            self.series.add(found)
        self.series.restart()
        self.started = time.monotonic()
        self._write()

    def read(self, final: bool = False) -> None:
        """Add new metrics to loss.csv. Raises SupersededError if another attempt has the run."""
        clock = time.monotonic() - self.started
        for found in self.reader.read(final):
            self.series.add(found, clock)
        if self.series.changed:
            self._write()

    def _write(self) -> None:
        """Write loss.csv before the position: rereading the same rows from an older position changes nothing."""
        text = self.series.to_csv(self.tokens_per_step)
        atomic_write(self.run_dir / run_files.LOSS, text, durable=False, guard=self.attempt.require)
        position = self.reader.position() | self.series.position()
        atomic_write(self.run_dir / POSITION, json.dumps(position), durable=False)
        self.series.changed = False

    def restore(self) -> None:
        """Rewrite loss.csv if the command has written a file of its own there."""
        if run_files.read_text(self.run_dir / run_files.LOSS) != self.series.to_csv(self.tokens_per_step):
            self._write()

    @property
    def last_step(self) -> int:
        """The newest step, 0 if there is none."""
        return max(0, self.series.last)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier attempts included."""
        reported = [row["seconds"] for _, row in self.series.complete() if "seconds" in row]
        return max(reported, default=time.monotonic() - self.started)
