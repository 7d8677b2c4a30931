"""How this process was started: the command to start Ablatrix again, and the location of its code."""

import os
import sys

import ablatrix
from ablatrix.trainer.rundir.errors import RunError

PACKAGE = os.path.dirname(os.path.abspath(ablatrix.__file__))
ROOT = os.path.dirname(PACKAGE)  # a checkout, a code snapshot or site-packages: must be on PYTHONPATH


def search_working_folder_last() -> None:
    """Move the working folder to the end of sys.path.

    `python -m` puts it first, where a user's random.py or yaml.py would shadow the modules that we need.
    """
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # the working folder was removed
        return
    entries = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
    if len(entries) < len(sys.path):
        sys.path[:] = [*entries, here]


def program(relative: bool = True) -> str:
    """Return the command that starts Ablatrix the way this process was started, ready to be followed by a verb.

    relative: the path of a program that is not on PATH may be relative to the working folder.
    """
    python = os.path.abspath(sys.executable)
    command = os.path.join(os.path.dirname(python), "ablatrix")
    started = os.path.abspath(sys.argv[0])
    if os.path.basename(started) == "ablatrix":
        return _words(started, relative)
    folder, file = os.path.split(started)
    if file == "__main__.py" and os.path.basename(folder) in ("ablatrix", "orchestrator"):
        return f"{_words(python, relative)} -m {os.path.relpath(folder, ROOT).replace(os.sep, '.')}"
    return _words(command, relative) if os.path.exists(command) else f"{_words(python, relative)} -m ablatrix"


def module_environment() -> dict[str, str]:
    """Return this process's environment with PYTHONPATH set so that `python -m` finds this copy of Ablatrix."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}


def run_module(name: str, *arguments: str, text: str | None = None) -> str:
    """Run `python -m name` with `text` as input; return the last line of its output, as a site may print others first.

    For code that imports torch or must not open connections. Raises RunError with the last line of stderr.
    """
    import subprocess

    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ = module_environment() | offline | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", name, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RunError(lines[-1] if lines else f"{name}: exit code {done.returncode}")
    return done.stdout.rstrip("\n").rpartition("\n")[2]


def pip_install(package: str) -> str:
    """Return the command that installs a package for the Python that is running."""
    return f"{_words(os.path.abspath(sys.executable), relative=False)} -m pip install {package}"


def _words(path: str, relative: bool) -> str:
    """Return a program's name if it is on PATH, else its path, quoted for a shell."""
    import shlex
    import shutil

    for name in (os.path.basename(path), "python"):
        if shutil.which(name) == path:
            return name
    below = os.path.relpath(path) if relative else os.pardir
    return shlex.quote(path if below.startswith(os.pardir) else below)
