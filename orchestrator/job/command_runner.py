"""One run of a command: start it, pass signals on, read its numbers, and leave what every run folder has.

Needs the standard library only. Exit codes are the trainer's: 0 done, 75 stopped, 76 another attempt has the run, 1 a
failure (its reason is in events.jsonl).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ablatrix.orchestrator.job.loss_table import Numbers
from ablatrix.orchestrator.store import log_tail
from ablatrix.orchestrator.study import command
from ablatrix.orchestrator.study.command import HELPER, SPEC
from ablatrix.trainer.rundir import loss_digest, processes, run_files
from ablatrix.trainer.rundir.attempts import Attempt, GoneError, SupersededError
from ablatrix.trainer.rundir.console import complain, say
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import append_event, read_events
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.rundir.program import ROOT

LISTENED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
POLL_SECONDS = 0.5
READ_SECONDS = 2.0  # between looks at the metrics; they cost a stat, or what has come
HEARTBEAT_SECONDS = 30.0
GRACE_SECONDS = 60.0  # from the signal to the kill; Slurm's own is 30 s after SIGTERM, and 120 s before a time limit
PACKAGES = ".python"  # in a run's folder: the only thing of ours on the command's PYTHONPATH
ATTEMPT = "ABLATRIX_ATTEMPT"
MOST_NAMES = 20  # of a source that are listed


class Runner:
    """One attempt at a run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()
        self.spec = read_spec(run_dir)
        self.child: subprocess.Popen[bytes] | None = None
        self.received: int | None = None
        self.told: float | None = None  # when the command was told to stop
        self.resumed = False
        self.shortened = False  # a smoke test that has its steps
        self._seen: float | None = None  # the checkpoint's time

    def run(self) -> int:
        """Start the command and stay until it has ended."""
        for number in LISTENED:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_lost_task)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENED)
        if (run_files.read_json(self.run_dir / run_files.SUMMARY) or {}).get("fingerprint") == self.spec["fingerprint"]:
            say(f"{self.run_dir}: already finished")
            return 0
        self.attempt = Attempt.take(self.run_dir)
        try:
            return self._attend()
        except SupersededError as error:
            self._kill()
            complain(f"error: {error}")
            append_event(self.run_dir, "superseded", start=self.attempt.number)
            return error.exit_code
        except GoneError:
            self._kill()
            raise
        except OSError as error:
            self._kill()
            return self._fail(f"{error.filename or self.run_dir}: {error.strerror}")
        except BaseException:
            self._kill()
            raise

    def _attend(self) -> int:
        argv, resumed = self._argv()
        self.resumed = resumed
        self.args = self._command_line(argv)
        self._put_back()
        self._place_helper()
        self.numbers = Numbers(self.run_dir, self.spec, self.attempt)
        self.numbers.catch_up()
        self._seen = self._checkpoint_time()
        earlier = any(e["event"] in ("started", "resumed") for e in read_events(self.run_dir))
        fields: dict[str, Any] = {"start": self.attempt.number}
        if resumed:
            fields["iter"] = max(0, self.numbers.series.last)
        elif earlier:
            fields["reason"] = self._why_anew()
        if self.received is not None:  # before there was anything to stop
            return self._stopped()
        end_leftovers(self.run_dir, self.attempt.number)
        try:
            self._start(argv)
        except OSError as error:
            where = error.filename or argv[0]
            return self._fail(f"{where}: the command cannot be started: {error.strerror}", code=2)
        append_event(self.run_dir, "resumed" if resumed else "started", **fields)
        if self.received is not None and self.told is None:
            self._tell()
        return self._ended(self._wait())

    def _argv(self) -> tuple[list[str], bool]:
        """What to start, and whether it goes on with what an earlier attempt has left."""
        resume, checkpoint = self.spec["resume_command"], self.spec["checkpoint"]
        begun = any(e["event"] in ("started", "resumed") for e in read_events(self.run_dir))
        if resume and begun and (checkpoint is None or Path(checkpoint).exists()):
            return resume, True
        return self.spec["command"], False

    def _why_anew(self) -> str:
        if self.spec["resume_command"] and self.spec["checkpoint"]:
            return f"there is no {self.spec['checkpoint']} yet: the command begins anew"
        if self.spec["on_signal"] != "none" or self.spec["metrics"]["path"].endswith(command.HELPER_METRICS):
            return "the same command is started again"
        return "no resume_command is known: the command begins anew"

    def _put_back(self) -> None:
        """Files of ours that the command has written over: its own are kept beside them."""
        ours = {run_files.CONFIG: self.spec["config"], run_files.ARGS: self.args, run_files.SUMMARY: None}
        for name, content in ours.items():
            path = self.run_dir / name
            there = run_files.read_text(path)
            if path.exists() and there != content and not (content is None and "fingerprint" in there):
                os.replace(path, path.with_name(f"command-{name}"))
            if content is not None and there != content:
                atomic_write(path, content, guard=self.attempt.require)

    def _command_line(self, argv: list[str]) -> str:
        """args.txt's text, to be pasted or given to sh."""
        told = [f"{name}={value}" for name, value in self.spec["env"].items()]
        command = shlex.join([*(["env", *told] if told else []), *argv])
        return f"cd {shlex.quote(self.spec['workdir'])} && {command}\n"

    def _place_helper(self) -> None:
        """ablatrix_run.py where the command can import it, and nothing else of ours."""
        helper = Path(ROOT) / HELPER
        if helper.exists():
            make_folder(self.run_dir / PACKAGES)
            atomic_write(self.run_dir / PACKAGES / HELPER, helper.read_bytes(), durable=False)

    def _start(self, argv: list[str]) -> None:
        held = set(LISTENED)
        # Held back meanwhile: between the fork and its start the child would answer with our handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            self.child = subprocess.Popen(
                argv,
                cwd=self.spec["workdir"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_prepare_child(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def _environment(self) -> dict[str, str]:
        """The job's, without our code on PYTHONPATH: it must not hide the command's own modules."""
        code = os.path.realpath(ROOT)
        entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        theirs = [entry for entry in entries if entry and os.path.realpath(entry) != code]
        return {
            **os.environ,
            "ABLATRIX_RUN_DIR": str(self.run_dir),
            ATTEMPT: str(self.attempt.number),
            "ABLATRIX_SEED": str(self.spec["seed"]),
            "ABLATRIX_ON_SIGNAL": self.spec["on_signal"],
            **self.spec["env"],
            "PYTHONPATH": os.pathsep.join(
                filter(None, [self.spec["env"].get("PYTHONPATH", ""), *theirs, str(self.run_dir / PACKAGES)])
            ),
        }

    # ---- while it runs

    def _wait(self) -> int:
        """Look after the command until it has ended; its exit code, negative for a signal."""
        assert self.child is not None
        read = beat = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.child.wait(POLL_SECONDS)
            now = time.monotonic()
            if self.told is not None and now - self.told > GRACE_SECONDS:
                self._kill()
            if now - read >= READ_SECONDS:
                read = now
                self.attempt.require()
                self.numbers.read()
                self._note_checkpoint()
            if now - beat >= HEARTBEAT_SECONDS:
                beat = now
                append_event(self.run_dir, "heartbeat", iter=max(0, self.numbers.series.last))
            if self.spec["stop_after"] and self.numbers.series.last >= self.spec["stop_after"] and not self.shortened:
                self.shortened, self.told = True, now
                self._send(signal.SIGTERM)

    def _note_checkpoint(self) -> None:
        """A `checkpoint` event whenever the command has written its file anew."""
        seen = self._checkpoint_time()
        if seen is not None and seen != self._seen:
            self._seen = seen
            append_event(self.run_dir, "checkpoint", iter=max(0, self.numbers.series.last))

    def _checkpoint_time(self) -> float | None:
        try:
            return os.stat(self.spec["checkpoint"]).st_mtime if self.spec["checkpoint"] else None
        except OSError:
            return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if self.child is not None:
                self._tell()

    def _on_lost_task(self, number: int, frame: FrameType | None) -> None:
        """The job's task was killed (SIGHUP is our parent-death signal): end at once, with all of the command."""
        if self.child is not None:
            self._kill()
            end_leftovers(self.run_dir, self.attempt.number + 1)
        os._exit(1)

    def _tell(self) -> None:
        """Have the command stop, in the way in which it saves its state, if there is one."""
        wanted = self.spec["on_signal"]
        self.told = time.monotonic()
        self._send(signal.SIGTERM if wanted == "none" else signal.Signals[f"SIG{wanted}"], group=wanted == "none")

    def _send(self, number: int, group: bool = True) -> None:
        """To the program alone where it is to save its state: its helper processes would die of it."""
        if self.child is None or self.child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.child.pid, number)
            else:
                self.child.send_signal(number)

    def _kill(self) -> None:
        """End what is left of the command and of what it has started."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, signal.SIGKILL)

    # ---- the end

    def _ended(self, code: int) -> int:
        self._kill()
        self.attempt.require()  # whoever has the run now may have ended our command
        complete = code == 0 and (self.received is None or self._at_the_end())
        self.numbers.read(final=complete or self.shortened)
        self._note_checkpoint()
        self._put_back()
        if self.shortened or complete or (code == 0 and self._at_the_end()):
            return self._finish()
        if self.received is not None or code == run_files.EXIT_STOPPED:
            return self._stopped(saved=code == run_files.EXIT_STOPPED)
        reason = log_tail.describe_exit(code, self.run_dir / run_files.JOB_OUT)
        return self._fail(reason, code if 0 < code < run_files.EXIT_STOPPED else 1)

    def _at_the_end(self) -> bool:
        """Has it made all its steps? The last one may be numbered from 0, and need not have been told."""
        steps = self.spec["steps"]
        return bool(steps) and self.numbers.series.last >= steps - 1

    def _stopped(self, saved: bool = False) -> int:
        name = signal.Signals(self.received).name if self.received is not None else ""
        fields: dict[str, Any] = {}
        saves = saved or self.spec["on_signal"] != "none"
        if self.child is not None and saves:
            fields["iter"] = max(0, self.numbers.series.last)
        if name:
            append_event(self.run_dir, "signal", signal=name, iter=max(0, self._last()))
        if not saves and not self.spec["resume_command"]:
            fields["anew"] = True
        append_event(self.run_dir, "stopped", **fields)
        say(f"stopped by {name or 'itself'}; start again to {'begin anew' if 'anew' in fields else 'continue'}")
        return run_files.EXIT_STOPPED

    def _last(self) -> int:
        return self.numbers.series.last

    def _fail(self, reason: str, code: int = 1) -> int:
        complain(f"error: {reason}")
        try:
            append_event(self.run_dir, "failed", reason=reason)
        except OSError as error:
            complain(f"{self.run_dir / run_files.EVENTS}: not written: {error.strerror}")
        return code

    def _finish(self) -> int:
        """summary.json, which says that the run is done; without any number it is not."""
        rows = self.numbers.series
        found = rows.headline()
        if found is None:
            return self._fail(f"exit code 0, but {self._silence()}; mend `metrics:` and submit again with --retry")
        self.numbers.mend()
        measure, value, step = found
        final = rows.final_loss()
        tokens = self.spec["tokens_per_step"]
        told = [row["tokens"] for row in rows.rows.values() if "tokens" in row]
        summary = {
            "iters": rows.last if rows.last > 0 else step,
            "max_iters": self.spec["steps"],
            "tokens": max(told, default=round(rows.last * tokens) if tokens else None),
            "seconds": round(self.numbers.seconds, 3),
            "final_loss": _finite(final),
            "final_value": _finite(value),
            "measure": measure,
            "measured_at": step,
            "initial_loss": _finite(rows.first_loss()),
            "diverged": not math.isfinite(value) or (final is not None and not math.isfinite(final)),
            "unreadable_numbers": rows.bad,
            "steps_began_again": rows.resets + (self.resumed and rows.replaced),
            "steps_repeated": len(rows.repeated),
            "fingerprint": self.spec["fingerprint"],
            loss_digest.KEY: loss_digest.describe(self.run_dir),
        }
        text = json.dumps({k: v for k, v in summary.items() if v is not None or k == "final_value"}, indent=2) + "\n"
        atomic_write(self.run_dir / run_files.SUMMARY, text, guard=self.attempt.require)
        fields = {"iter": rows.last, "diverged": summary["diverged"], "files": run_files.list_files(self.run_dir)}
        append_event(self.run_dir, "finished", **fields)
        say(f"finished after iter {rows.last}: {measure} {value}")
        return 0

    def _silence(self) -> str:
        source = self.spec["metrics"]
        if not Path(source["path"]).exists():
            return f"{source['path']} with its metrics is not there"
        column = source.get("compare") or "loss"
        what = "no line matches the patterns" if source["kind"] == "regex" else f"no row has a step and a {column}"
        seen = [name for name in self.numbers.follower.parser.seen if not name.startswith("_")]
        names = f"; its names: {', '.join(seen[:MOST_NAMES])}" if seen else ""
        return f"no {column} was found in {source['path']} ({what}{names})"


def end_leftovers(run_dir: Path, before: int) -> None:
    """Kill what is left on this machine of the attempts at a run with a number lower than `before`."""
    marks = f"ABLATRIX_RUN_DIR={run_dir}".encode(), f"{ATTEMPT}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # already gone, or another user's
            words = (folder / "environ").read_bytes().split(b"\0")
            number = next((word.partition(b"=")[2] for word in words if word.startswith(marks[1])), b"")
            if marks[0] in words and number.isdigit() and int(number) < before:
                os.kill(int(folder.name), signal.SIGKILL)


def _finite(value: float | None) -> float | None:
    """JSON has no nan."""
    return value if value is not None and math.isfinite(value) else None


def _prepare_child() -> Callable[[], None]:
    """Return a `preexec_fn`: the child dies with us, and no signal is held back or ignored."""
    end_with_us = processes.end_with_parent()

    def prepare() -> None:
        end_with_us()
        for number in (*LISTENED, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENED)

    return prepare


def read_spec(run_dir: Path) -> dict[str, Any]:
    """command.json of a run. Raises RunError where it is missing or damaged."""
    spec = run_files.read_json(run_dir / SPEC)
    if spec is None or not isinstance(spec.get("command"), list):
        raise RunError(f"{run_dir / SPEC}: missing or damaged; submit the experiment again")
    return spec


def main(run_dir: Path) -> int:
    """Do the run and return its exit code."""
    try:
        return Runner(run_dir).run()
    except RunError as error:
        complain(f"error: {error}")
        return error.exit_code
