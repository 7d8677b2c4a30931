"""A `python` whose processes are forked from one that has torch and Ablatrix loaded, and start in 0.1 s.

The tests start hundreds of verbs, checks and trainers, which would spend most of their time on imports. `ForkedPython`
starts the server; `forked_client.py`, installed as `python` in a folder, sends it the arguments, environment, working
folder and open files of a command, forwards signals and exits like the forked process. Anything other than a verb,
check or trainer, and anything in a Slurm job, is run by the real Python: use that if a process, its imports or its code
snapshot matter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import program

CLIENT = Path(__file__).with_name("forked_client.py")
HEADER = 8  # bytes of a request's length prefix
PR_SET_PDEATHSIG = 1
LOADED = (
    "ablatrix.orchestrator.cli",
    "ablatrix.orchestrator.verbs.submit",
    "ablatrix.orchestrator.verbs.report",
    "ablatrix.orchestrator.report.build",
    "ablatrix.orchestrator.slurm.submitit",
    "ablatrix.trainer.run",
    "ablatrix.trainer.cli",
    "ablatrix.trainer.effect_check",
    "ablatrix.trainer.data.tokenizer_check",
    "ablatrix.trainer.data.cache_builder",
)


class ForkedPython:
    """Runs the server. python: path of the client program."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ablatrix-"))
        (self.folder / "real").symlink_to(sys.executable)
        script = self.folder / "python"
        script.write_text(f"#!{sys.executable} -IS\n{CLIENT.read_text()}")
        script.chmod(0o755)
        self.python = str(script)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / "socket"))
        listener.listen(64)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _end_with(parent)
            try:
                _Server(listener).serve()
            finally:
                os._exit(1)
        listener.close()

    def stop(self) -> None:
        """Stop the server and the processes that it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _end_with(parent: int) -> None:
    """Kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Server:
    """Forks a process per request, reports its pid and its exit, and kills it if its client disappears."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Serve requests; modules are loaded at the first one."""
        wakeup, signalled = os.pipe()
        os.set_blocking(signalled, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.select()
            for name in LOADED:
                importlib.import_module(name)
            gc.collect()
            gc.freeze()
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            signal.set_wakeup_fd(signalled)
            selector.register(wakeup, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.listener:
                        self._accept(selector)
                    elif key.fileobj == wakeup:
                        os.read(wakeup, 4096)
                        self._reap(selector)
                    elif isinstance(key.fileobj, socket.socket) and key.data in self.clients:
                        os.kill(key.data, signal.SIGKILL)  # the client was killed
                        selector.unregister(key.fileobj)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        connection, _ = self.listener.accept()
        request, files = _receive(connection)
        if request:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _end_with(parent)
                self.listener.close()
                for other in (connection, *self.clients.values()):
                    other.close()
                _become(request, files)
            self.clients[pid] = connection
            selector.register(connection, selectors.EVENT_READ, pid)
            with contextlib.suppress(OSError):  # the client was killed; the selector reports that
                connection.sendall(f"{pid}\n".encode())
        else:
            connection.close()
        for descriptor in files:
            os.close(descriptor)

    def _reap(self, selector: selectors.BaseSelector) -> None:
        while self.clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self.clients.pop(pid)
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            with contextlib.suppress(OSError), connection:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request ({} if the client is gone) and its open files."""
    header, files, _, _ = socket.recv_fds(connection, HEADER, 3)
    text, length = b"", int(header or b"0")
    while len(text) < length:
        part = connection.recv(length - len(text))
        if not part:
            return {}, files
        text += part
    return json.loads(text or b"{}"), files


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Turn this process into the requested one; never returns."""
    code = 1
    try:
        _set_up(request, files)
        try:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _set_up(request: dict[str, Any], files: list[int]) -> None:
    """Take over the client's open files, signals, environment, working folder and arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if request["session"]:
        os.setsid()
    for target, descriptor in enumerate(files):
        os.dup2(descriptor, target)
    for descriptor in files:
        os.close(descriptor)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flushed = os.isatty(1) or "PYTHONUNBUFFERED" in os.environ
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), line_buffering=flushed)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False),  # noqa: SIM115
        line_buffering=True,
        errors="backslashreplace",
    )
    sys.executable = request["executable"]
    sys.argv = [request["module"], *request["words"]]
    added = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    sys.path[:0] = [*([] if request["safe_path"] else [str(Path.cwd())]), *added]
    sys.modules.pop(request["module"], None)
    _stand_for(next((path for path in added if Path(path, "ablatrix").is_dir()), program.ROOT))


def _stand_for(copy: str) -> None:
    """Make the loaded code pass for its copy on PYTHONPATH, a code snapshot."""
    loaded = program.ROOT
    for name, module in list(sys.modules.items()):
        if name.startswith("ablatrix.") and vars(module).get("ROOT") == loaded:
            module.ROOT = copy  # type: ignore[attr-defined]
