"""How this process was started: the command that starts Ablatrix again, and the packages that it imports."""

import os
import sys

PACKAGES = ("models", "orchestrator", "trainer")


def prefer_own_packages() -> None:
    """Import our packages from this copy, and search the working folder last.

    `python -m` puts the working folder first on sys.path, where a user's own models/, trainer.py or random.py would
    take the place of ours or of Python's.
    """
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # the working folder was removed
        here = None
    entries = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
    moved = [here] if here and len(entries) < len(sys.path) else []
    sys.path[:] = [_root()]
    for name in PACKAGES:
        __import__(name)
    sys.path[:] = entries + moved


def program(relative: bool = True) -> str:
    """Return the words that start Ablatrix as this process was started, ready to paste before a verb.

    relative: the path of a program that PATH does not find may be relative to the working folder.
    """
    python = os.path.abspath(sys.executable)
    command = os.path.join(os.path.dirname(python), "ablatrix")
    started = os.path.abspath(sys.argv[0])
    if os.path.basename(started) == "ablatrix":
        return _words(started, relative)
    if started.endswith(os.path.join("orchestrator", "__main__.py")) or not os.path.exists(command):
        return f"{_words(python, relative)} -m orchestrator"
    return _words(command, relative)


def pip_install(package: str) -> str:
    """Return the command that installs a package for the Python that runs this."""
    return f"{_words(os.path.abspath(sys.executable), relative=False)} -m pip install {package}"


def _words(path: str, relative: bool) -> str:
    """Return a program's name if PATH finds it, else its path, quoted for a shell."""
    import shlex
    import shutil

    for name in (os.path.basename(path), "python"):
        if shutil.which(name) == path:
            return name
    below = os.path.relpath(path) if relative else os.pardir
    return shlex.quote(path if below.startswith(os.pardir) else below)


def _root() -> str:
    """Return the folder that holds our packages: a checkout, a code snapshot or site-packages."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
