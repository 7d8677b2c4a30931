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
    sys.path[:] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    for name in PACKAGES:
        __import__(name)
    sys.path[:] = entries + moved


def program() -> str:
    """Return the words that start Ablatrix as this process was started, ready to paste before a verb."""
    import shlex

    if os.path.basename(sys.argv[0]) == "ablatrix":
        return shlex.quote(_shortest(os.path.abspath(sys.argv[0])))
    return f"{shlex.quote(_shortest(sys.executable))} -m orchestrator"


def _shortest(path: str) -> str:
    """Return the name of a program if PATH finds it, else its path, relative if it is below the working folder."""
    import shutil

    for name in (os.path.basename(path), "python"):
        if shutil.which(name) == path:
            return name
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
