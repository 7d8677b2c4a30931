"""Settings, metrics, checkpoints and stop requests for a training script in a study. Python 3.8, standard library.

    from ablatrix_run import run

    first = load(run.saved("state.pt")) if run.saved("state.pt") else 0
    for step in range(first, run.get("steps", 1000)):
        run.log(step, loss=train(step, rate=run.get("learning_rate", 1e-3)))
        if run.should_stop():  # the job was asked to end: save and exit
            with run.checkpoint("state.pt") as path:
                save(path)
            run.stop()

In an Ablatrix job, the folder, the settings and the seed are the run's. Outside a job, the folder is ./run, the
settings are empty unless ./run/settings.json exists, and Ctrl-C asks to stop: the script also works on its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from typing import Any, Iterator

__all__ = ["Run", "run"]

METRICS = "metrics.jsonl"
SETTINGS = "settings.json"
EXIT_STOPPED = 75  # stopped on request, with everything saved


class Run:
    """A run. Nothing is read or written, and no signal handler is installed, before its first use."""

    def __init__(self, folder: str | None = None) -> None:
        self.in_job = folder is None and "ABLATRIX_RUN_DIR" in os.environ
        self.folder = os.path.abspath(folder or os.environ.get("ABLATRIX_RUN_DIR") or "run")
        self.seed = int(os.environ.get("ABLATRIX_SEED", "0"))
        self._asked: int | None = None
        self._listening = False
        self._config: dict[str, Any] | None = None
        self._metrics: int | None = None
        self._started = time.monotonic()

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings as nested dicts, {"model": {"layers": 3}}; empty if there are none."""
        if self._config is None:
            try:
                with open(self.path(SETTINGS), encoding="utf-8") as file:
                    self._config = json.load(file)
            except FileNotFoundError:
                self._config = {}
        return self._config

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting by its dotted key, as in `run.get("model.layers", 3)`."""
        found: Any = self.config
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return self.config.get(key, default)
            found = found[part]
        return found

    def path(self, name: str) -> str:
        """Return the path of a file in the run's folder, creating the folder if needed."""
        os.makedirs(self.folder, exist_ok=True)
        return os.path.join(self.folder, name)

    def log(self, step: int, **values: Any) -> None:
        """Log the values of a step: loss, val_loss, lr, grad_norm, tokens, seconds, dt, and any others.

        torch and numpy scalars are accepted. A line is written completely or not at all.
        """
        self.listen()
        record: dict[str, Any] = {"step": int(step), "_seconds": round(time.monotonic() - self._started, 6)}
        for name, value in values.items():
            number = float(value)
            record[name] = number if math.isfinite(number) else str(number)  # JSON has no NaN
        line = (json.dumps(record) + "\n").encode()
        if self._metrics is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            self._metrics = os.open(self.path(METRICS), flags, 0o666)
            size = os.fstat(self._metrics).st_size
            if size and os.pread(self._metrics, 1, size - 1) != b"\n":  # the last line was cut off by a kill
                line = b"\n" + line
        while line:
            line = line[os.write(self._metrics, line) :]
        if not self.in_job:
            text = "  ".join(f"{name} {value}" for name, value in record.items() if name != "_seconds")
            print(text, flush=True)

    def listen(self) -> None:
        """Handle the signals that ask to stop. Other methods call this; call it first if loading takes long."""
        if self._listening:
            return
        self._listening = True
        for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGUSR1"):
            if hasattr(signal, name):
                with contextlib.suppress(ValueError):  # only the main thread can handle signals
                    signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        self._asked = number

    def should_stop(self) -> bool:
        """True if the job was asked to end (time limit, preemption, cancel, Ctrl-C)."""
        self.listen()
        return self._asked is not None

    def stop(self) -> None:
        """Exit after saving: the run counts as stopped, and continues when it is started again."""
        sys.exit(EXIT_STOPPED)

    @contextlib.contextmanager
    def checkpoint(self, name: str) -> Iterator[str]:
        """Yield a path to write to; it replaces `name` in the run's folder when the block ends without an error.

        If the script is killed inside the block, the old file is unchanged.
        """
        target = self.path(name)
        temporary = f"{target}.{os.getpid()}.{time.time_ns()}.tmp"
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def saved(self, name: str) -> str | None:
        """Return the path of a saved checkpoint, or None if there is none."""
        path = self.path(name)
        return path if os.path.exists(path) else None


run = Run()
