"""A process that has loaded torch and the trainer and forks the jobs of local runs, which need not import them.

`python -P -m ablatrix.orchestrator.job.warm_parent` reads from stdin a line of JSON per job, [LOG, RUN_DIR:ATTEMPT],
and answers with the job's process id. It exits when stdin is closed, while its jobs continue. A job is a fork that
runs `task.main`, with its own session and log; its trainer is another fork.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ablatrix.orchestrator.job import task
from ablatrix.orchestrator.job.command_process import STOP_SIGNALS
from ablatrix.trainer.rundir.files import open_to_append

MODULE = "ablatrix.trainer"  # module in the command that a fork replaces
BLAS_THREADS = "OPENBLAS_NUM_THREADS"


class Forked:
    """A forked child, with the part of subprocess.Popen's interface that a job uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._collect(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the exit code, negative for a signal."""
        while (code := self._collect(0)) is None:
            pass
        return code

    def _collect(self, options: int) -> int | None:
        with contextlib.suppress(ChildProcessError):  # a signal handler, which also polls, has read the exit code
            if self.returncode is None and (found := os.waitpid(self.pid, options))[0]:
                self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_trainer(
    words: Sequence[str], environ: Mapping[str, str], output: BinaryIO, prepare: Callable[[], None] | None = None
) -> Forked:
    """Start the trainer as `member.spawn` does, but without starting Python and importing torch."""
    import numpy as np
    import torch

    from ablatrix.trainer import cli

    flags = words[words.index(MODULE) + 1 :]
    pid = os.fork()
    if pid:
        return Forked(pid)
    code = 1
    try:
        for number in STOP_SIGNALS:  # blocked until the trainer has its own handlers
            signal.signal(number, signal.SIG_DFL)
        _enter_session(output)
        if prepare:
            prepare()
        os.environ.clear()
        os.environ.update(environ)
        # otherwise all forks without a seed would draw the same numbers; Python does this for `random`
        torch.seed()
        np.random.seed()
        sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *flags]
        code = cli.main(list(flags))
    except Exception:  # noqa: BLE001 - as Python does: the job's code, further up the stack, must not catch it
        traceback.print_exc()
    cli.leave(code)
    raise AssertionError("not reached")


def _enter_session(output: BinaryIO) -> None:
    """Start a session with empty stdin and all output in `output`."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)


def _fork_job(log: Path, run: str) -> int:
    """Fork a job and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    with open_to_append(log) as output:
        _enter_session(output)
    code = task.main([run], fork_trainer)
    sys.stdout.flush()
    os._exit(code)  # skips tearing down torch, which takes 0.2 s


def main() -> int:
    """Fork a job for each line of stdin. Return 1 if a library has started threads, which forks would lack."""
    from ablatrix.trainer.device import prepare

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, exit codes are lost
    prepare()
    added = BLAS_THREADS not in os.environ
    os.environ.setdefault(BLAS_THREADS, "1")  # numpy would start threads when imported
    from ablatrix.trainer import cli, run  # noqa: F401

    if added:
        del os.environ[BLAS_THREADS]
    if len(os.listdir("/proc/self/task")) > 1:
        return 1
    gc.freeze()  # keeps memory shared with the forks
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        log, job = json.loads(line)
        print(_fork_job(Path(log), job), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
