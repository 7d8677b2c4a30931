"""Let the server in `forked_python.py` run `python [-P] -m MODULE WORDS`; run anything else with the real Python."""

import contextlib
import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HERE = os.path.dirname(os.path.abspath(__file__))
REAL = os.readlink(os.path.join(HERE, "real"))
FORKED = ("orchestrator", "trainer", "ablatrix")
REAL_WITH = ("SLURM_JOB_NODELIST", "ABLATRIX_CLAIM_SECONDS", "ABLATRIX_SBATCH_TIMEOUT")  # two are read at import


def can_be_forked(flags: "list[str]", module: "list[str]") -> bool:
    """True for our modules, outside Slurm jobs, unless something must happen before or during their import."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    hooked = any(os.path.exists(os.path.join(folder, "sitecustomize.py")) for folder in path)
    ours = flags == ["-m"] and module[:1] and module[0].partition(".")[0] in FORKED
    return bool(ours and not hooked and not any(name in os.environ for name in REAL_WITH))


def forward(pid: int, number: int) -> None:
    """Send a signal to the forked process, which may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    words = sys.argv[1:]
    safe_path = words[:1] == ["-P"]
    module, rest = words[1 + safe_path :][:1], words[2 + safe_path :]
    if not can_be_forked(words[safe_path : safe_path + 1], module):
        os.execv(REAL, [REAL, *words])
    ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    os.umask(umask := os.umask(0o077))
    request = {
        "module": module[0],
        "words": rest,
        "safe_path": safe_path,
        "executable": os.path.abspath(__file__),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "ignored": ignored,
        "session": os.getsid(0) == os.getpid(),
        "umask": umask,
    }
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(HERE, "socket"))
        socket.send_fds(connection, [b"%08d" % len(text)], [0, 1, 2])
        connection.sendall(text)
        answers = connection.makefile()
        pid = int(answers.readline())
        for number in set(FORWARDED) - set(ignored):
            signal.signal(number, lambda number, frame: forward(pid, number))
        code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
