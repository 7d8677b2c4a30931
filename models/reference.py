"""References to a user's own code: `package.module:Class`, on PYTHONPATH or in the working folder. Torch-free."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import ablatrix

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def top_level(reference: str) -> str:
    """Return the top-level package or module of a reference."""
    return reference.partition(":")[0].partition(".")[0]


def is_taken(name: str) -> bool:
    """True if a user's module cannot have this name because Ablatrix or Python uses it."""
    return name == "ablatrix" or name in sys.stdlib_module_names


def is_imported_from(folder: Path, name: str) -> bool:
    """True if no other module of this name comes before the working folder, which is last on the path."""
    if is_taken(name):
        return False
    others = [entry for entry in sys.path if os.path.realpath(entry) != os.path.realpath(folder)]
    found = importlib.machinery.PathFinder.find_spec(name, others)
    return found is None or found.loader is None


def import_module(reference: str) -> Any:
    """Import the module of a reference. Raises whatever the import raises."""
    search_working_folder()
    return importlib.import_module(reference.partition(":")[0])


def search_working_folder() -> None:
    """Put the working folder last on sys.path, so that it shadows no module of Ablatrix or Python."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def describe_conflict(reference: str) -> str | None:
    """Return why a reference resolves to a module of Ablatrix or Python instead of the user's, and the fix; else None.

    Does not import the user's code.
    """
    name = top_level(reference)
    ours = name == "ablatrix" or _is_of_checkout(name)
    if not ours and not is_taken(name):
        return None
    try:
        if hasattr(import_module(reference), reference.partition(":")[2]):
            return None
    except ImportError:
        pass
    owner = "Ablatrix has a package" if ours else "Python has a module"
    return f"{owner} of the name {name}; rename yours, for example to my_{name}, and write my_{reference}"


def _is_of_checkout(name: str) -> bool:
    """True if `import name` finds a folder of Ablatrix's checkout, such as its models/."""
    found = importlib.machinery.PathFinder.find_spec(name)
    folder = (Path(ablatrix.__file__).parent / name).resolve()
    return found is not None and found.origin is not None and folder == Path(found.origin).resolve().parent


def describe_absence(reference: str) -> str | None:
    """Return a message if a reference's package or module does not exist, None if it does. Imports nothing."""
    search_working_folder()
    name = top_level(reference)
    if importlib.util.find_spec(name) is not None:
        return None
    return f"there is no module {name}; put its folder on PYTHONPATH, or start in the folder that contains {name}"
