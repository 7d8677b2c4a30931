"""Run a user's command as one run of a study: pass signals on, read its metrics, write the files of a run folder.

Standard library only. Exit codes are the trainer's: 0 done, 75 stopped, 76 another attempt has the run, 1 failed (the
reason is in events.jsonl).
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from ablatrix.orchestrator.job import command_spec
from ablatrix.orchestrator.job.command_process import PACKAGES, STOP_SIGNALS, CommandProcess, kill_leftovers
from ablatrix.orchestrator.job.loss_table import LossTable
from ablatrix.orchestrator.store import log_tail
from ablatrix.orchestrator.study import command
from ablatrix.orchestrator.study.command import HELPER
from ablatrix.trainer.rundir import hardware, run_files, timing
from ablatrix.trainer.rundir.attempts import Attempt, SupersededError
from ablatrix.trainer.rundir.console import complain, say
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import append_event, note, read_events
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.rundir.program import ROOT

POLL_SECONDS = 0.5
READ_SECONDS = 2.0  # between reads of the metrics
HEARTBEAT_SECONDS = 30.0
MOST_NAMES = 20  # names in a source that a message lists


class CommandRunner:
    """One attempt at a run."""

    attempt: Attempt
    table: LossTable

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()
        self.spec = command_spec.read(run_dir)
        self.process = CommandProcess(self.spec, self.run_dir)
        self.received: int | None = None  # the first signal received
        self.resumed = False
        self.shortened = False  # True once a smoke test has done its steps
        self._checkpoint_time: float | None = None

    def run(self) -> int:
        """Start the command, wait for it to end, and return the exit code."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_lost_task)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if (run_files.read_json(self.run_dir / run_files.SUMMARY) or {}).get("fingerprint") == self.spec.fingerprint:
            say(f"{self.run_dir}: already finished")
            return 0
        self.attempt = Attempt.take(self.run_dir)
        try:
            with self.process:
                return self._run_attempt()
        except SupersededError as error:
            complain(f"error: {error}")
            append_event(self.run_dir, "superseded", start=self.attempt.number)
            return error.exit_code
        except OSError as error:
            return self._fail(f"{error.filename or self.run_dir}: {error.strerror}")

    def _run_attempt(self) -> int:
        started_before = any(e["event"] in ("started", "resumed") for e in read_events(self.run_dir))
        self.resumed = started_before and self._can_resume()
        words = self.spec.resume_command if self.resumed and self.spec.resume_command else self.spec.command
        self._restore_files(words)
        self._place_helper()
        self.table = LossTable(self.run_dir, self.spec, self.attempt)
        self.table.catch_up()
        self._checkpoint_time = self._stat_checkpoint()
        if self.received is not None:  # received before the command was started
            return self._record_stop(words)
        kill_leftovers(self.run_dir, self.attempt.number)
        try:
            self.process.start(words, self.attempt.number)
        except OSError as error:
            where = error.filename or words[0]
            return self._fail(f"{where}: cannot start the command: {error.strerror}", code=2)
        fields: dict[str, Any] = {"start": self.attempt.number, **_share_of_machine()}
        if self.resumed:
            fields["iter"] = self.table.last_step
        elif started_before:
            fields["reason"] = self._explain_restart()
        append_event(self.run_dir, "resumed" if self.resumed else "started", **fields)
        if self.received is not None and self.process.stop_time is None:
            self.process.stop()
        return self._conclude(self._watch(), words)

    def _can_resume(self) -> bool:
        checkpoint = self.spec.checkpoint
        return bool(self.spec.resume_command) and (checkpoint is None or Path(checkpoint).exists())

    def _explain_restart(self) -> str:
        """Return why the command begins again at its first step although it was started before."""
        if self.spec.resume_command and self.spec.checkpoint:
            return f"there is no {self.spec.checkpoint} yet: the command starts from scratch"
        if self.spec.saves_state or self.spec.metrics["path"].endswith(command.HELPER_METRICS):
            return "the same command is started again"
        return "no resume_command is set: the command starts from scratch"

    def _restore_files(self, words: list[str]) -> None:
        """Rewrite our files that the command has overwritten, keeping the command's versions as command-<name>."""
        ours = {run_files.CONFIG: self.spec.config, run_files.ARGS: self._command_line(words), run_files.SUMMARY: None}
        for name, content in ours.items():
            path = self.run_dir / name
            existing = run_files.read_text(path)
            if path.exists() and existing != content and not (content is None and "fingerprint" in existing):
                path.replace(path.with_name(f"command-{name}"))
            if content is not None and existing != content:
                atomic_write(path, content, guard=self.attempt.require)

    def _command_line(self, words: list[str]) -> str:
        """Return the content of args.txt, which can be pasted into a shell or run with sh."""
        variables = [f"{name}={value}" for name, value in self.spec.env.items()]
        command = shlex.join([*(["env", *variables] if variables else []), *words])
        return f"cd {shlex.quote(self.spec.workdir)} && {command}\n"

    def _place_helper(self) -> None:
        """Make ablatrix_run.py, and nothing else of ours, importable by the command."""
        helper = Path(ROOT) / HELPER
        if helper.exists():
            make_folder(self.run_dir / PACKAGES)
            atomic_write(self.run_dir / PACKAGES / HELPER, helper.read_bytes(), durable=False)

    # ---- while the command runs

    def _watch(self) -> int:
        """Read the metrics until the command has ended, and return its exit code."""
        last_read = last_beat = time.monotonic()
        while (code := self.process.wait(POLL_SECONDS)) is None:
            now = time.monotonic()
            if now - last_read >= READ_SECONDS:
                last_read = now
                self.attempt.require()
                self.table.read()
                self._note_checkpoint()
            if now - last_beat >= HEARTBEAT_SECONDS:
                last_beat = now
                append_event(self.run_dir, "heartbeat", iter=self.table.last_step)
            if self.spec.stop_after and self.table.series.last >= self.spec.stop_after and not self.shortened:
                self.shortened = True
                self.process.stop(save=False)
        return code

    def _note_checkpoint(self) -> None:
        """Write a `checkpoint` event if the command has rewritten its checkpoint."""
        written = self._stat_checkpoint()
        if written is not None and written != self._checkpoint_time:
            self._checkpoint_time = written
            append_event(self.run_dir, "checkpoint", iter=self.table.last_step)

    def _stat_checkpoint(self) -> float | None:
        try:
            return Path(self.spec.checkpoint).stat().st_mtime if self.spec.checkpoint else None
        except OSError:
            return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if self.process.started:
                self.process.stop()

    def _on_lost_task(self, number: int, frame: FrameType | None) -> None:
        """End at once with the whole command: the job's task was killed (SIGHUP is our parent-death signal)."""
        if self.process.started:
            self.process.kill()
            kill_leftovers(self.run_dir, self.attempt.number + 1)
        os._exit(1)

    # ---- the end

    def _conclude(self, code: int, words: list[str]) -> int:
        self.process.kill()
        self.attempt.require()  # another attempt may have ended the command
        complete = code == 0 and (self.received is None or self._has_all_steps())
        self.table.read(final=complete or self.shortened)
        self._note_checkpoint()
        self._restore_files(words)
        if self.shortened or complete or (code == 0 and self._has_all_steps()):
            return self._finish()
        if self.received is not None or code == run_files.EXIT_STOPPED:
            return self._record_stop(words, saved=code == run_files.EXIT_STOPPED)
        reason = log_tail.describe_exit(code, self.run_dir / run_files.JOB_OUT)
        return self._fail(reason, code if 0 < code < run_files.EXIT_STOPPED else 1)

    def _has_all_steps(self) -> bool:
        """True if the command has done all its steps; as steps may be numbered from 0, the last may be one less."""
        return bool(self.spec.steps) and self.table.series.last >= (self.spec.steps or 0) - 1

    def _record_stop(self, words: list[str], saved: bool = False) -> int:
        """Record that the run was stopped. saved: True if the command reported that it saved its state."""
        name = signal.Signals(self.received).name if self.received is not None else ""
        saves = saved or self.spec.saves_state
        fields: dict[str, Any] = {"iter": self.table.last_step} if self.process.started and saves else {}
        if name:
            append_event(self.run_dir, "signal", signal=name, iter=self.table.last_step)
        if not saves and not self.spec.resume_command:
            fields["from_scratch"] = True
        append_event(self.run_dir, "stopped", **fields)
        then = "start from scratch" if "from_scratch" in fields else "continue"
        say(f"stopped by {name or 'itself'}; rerun the command to {then}")
        return run_files.EXIT_STOPPED

    def _fail(self, reason: str, code: int = 1) -> int:
        complain(f"error: {reason}")
        note(self.run_dir, "failed", reason=reason)
        return code

    def _finish(self) -> int:
        """Write summary.json, which marks the run as done; without any metric, the run has failed."""
        headline = self.table.series.headline()
        if headline is None:
            return self._fail(
                f"exit code 0, but {self._explain_silence()}; fix `metrics:` and submit again with --retry"
            )
        self.table.restore()
        summary = self._summary(*headline)
        text = json.dumps({k: v for k, v in summary.items() if v is not None or k == "final_value"}, indent=2) + "\n"
        atomic_write(self.run_dir / run_files.SUMMARY, text, guard=self.attempt.require)
        last = self.table.series.last
        fields = {"iter": last, "diverged": summary["diverged"], "files": run_files.list_files(self.run_dir)}
        append_event(self.run_dir, "finished", **fields)
        column, value, _ = headline
        say(f"finished after iter {last}: {column} {value}")
        return 0

    def _summary(self, column: str, value: float, step: int) -> dict[str, Any]:
        series, per_step = self.table.series, self.spec.tokens_per_step
        final = series.final_loss()
        tokens = [row["tokens"] for row in series.rows.values() if "tokens" in row]
        gpus = hardware.gpu_models() if hardware.visible_gpus() else []  # GPUs that the command may use
        return {
            "iters": series.last if series.last > 0 else step,
            "max_iters": self.spec.steps,
            "tokens": max(tokens, default=round(series.last * per_step) if per_step else None),
            "seconds": round(self.table.seconds, 3),
            "final_loss": _finite(final),
            "final_value": _finite(value),
            "measure": column,
            "measured_at": step,
            "initial_loss": _finite(series.first_loss()),
            "diverged": not math.isfinite(value) or (final is not None and not math.isfinite(final)),
            "unreadable_numbers": series.bad,
            "steps_began_again": series.resets + (self.resumed and series.replaced),
            "steps_repeated": len(series.repeated),
            "fingerprint": self.spec.fingerprint,
            **timing.describe(self.run_dir, ", ".join(gpus) or hardware.processor()),
        }

    def _explain_silence(self) -> str:
        """Return why no metric was found."""
        source = self.spec.metrics
        if not Path(source["path"]).exists():
            return f"{source['path']}, the file with its metrics, does not exist"
        column = source.get("compare") or "loss"
        what = "no line matches the patterns" if source["kind"] == "regex" else f"no row has a step and a {column}"
        seen = [name for name in self.table.reader.parser.seen if not name.startswith("_")]
        names = f"; its names: {', '.join(seen[:MOST_NAMES])}" if seen else ""
        return f"no {column} was found in {source['path']} ({what}{names})"


def _share_of_machine() -> dict[str, Any]:
    """Return the fields of a `started` event from which the run's device hours are counted.

    What the command starts is unknown, so it is assumed to use all GPUs of its job, or else the cores.
    """
    gpus, nodes = hardware.visible_gpus(), int(os.environ.get("SLURM_NNODES", "1"))
    return {"gpus": gpus, "processes": max(1, len(gpus)) * nodes, "threads": allotted_cores()}


def _finite(value: float | None) -> float | None:
    """Return the value, or None if JSON cannot represent it."""
    return value if value is not None and math.isfinite(value) else None


def main(run_dir: Path) -> int:
    """Run the command of a run folder and return the exit code."""
    try:
        return CommandRunner(run_dir).run()
    except RunError as error:
        complain(f"error: {error}")
        return error.exit_code
