"""Processes forked from one that has torch and the trainer loaded: a start takes 0.1 s instead of 2.

`Nursery` is the handle in the tests, `python -m tests.faults.nursery` the process that forks. A target is the name of
a function, `module:function`, whose arguments travel as JSON and whose result is the exit code.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.seccomp import Fault, Outcome, watch
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """Use as a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def start(self, target: str, *args: Any, log: Path) -> Child:
        """Fork a process that calls `target(*args)`, its output appended to `log`."""
        return Child(self, self.ask(op="start", target=target, args=args, log=str(log))["pid"], log)

    def watched(
        self, target: str, *args: Any, log: Path, fault: Fault, meanwhile: dict[str, Any] | None = None
    ) -> Outcome:
        """Run `target(*args)` in a forked process to its end, its system calls under `fault`.

        meanwhile: target, args and log of the process that runs from start to end while this one pauses.
        """
        fields = {"fault": asdict(fault), "meanwhile": meanwhile}
        return Outcome(**self.ask(op="watched", target=target, args=args, log=str(log), **fields))

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@dataclass
class Child:
    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None

    def send(self, number: int) -> None:
        """A signal; nothing where the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """The exit code (negative: killed by that signal), None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask(op="poll", pid=self.pid)["code"]
        return self.code

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.poll() is None:
            assert time.monotonic() < end, f"still running: {self.log.read_text()[-2000:]}"
            time.sleep(0.005)
        assert self.code is not None
        return self.code


def prepare(log: str) -> None:
    """In the child: output to `log`, and an end when the tests end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def call(target: str, args: list[Any]) -> int:
    module, _, function = target.partition(":")
    return int(getattr(importlib.import_module(module), function)(*args))


def fork(target: str, args: list[Any], log: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare(log)
        code = call(target, args)
    except BaseException:  # noqa: BLE001  (a forked child reports all, and must not return)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    match request.pop("op"):
        case "start":
            return {"pid": fork(**request)}
        case "poll":
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            return {"code": os.waitstatus_to_exitcode(status) if pid else None}
        case _:
            fault = Fault(**request.pop("fault"))
            log, meanwhile = request.pop("log"), request.pop("meanwhile")
            return asdict(
                watch(
                    lambda: call(**request),
                    fault,
                    prepare=lambda: prepare(log),
                    meanwhile=lambda: os.waitpid(fork(**meanwhile), 0),
                )
            )


def main() -> None:
    for name in ("tests.faults.actions", "ablatrix.trainer.run", "ablatrix.trainer.cli"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # what is imported or read on first use, is now
        call("tests.faults.actions:warm_up", [folder])
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
