"""The verb `init`: a small workspace in a folder of the user's own, with the package installed anywhere."""

from __future__ import annotations

from pathlib import Path

from ablatrix.orchestrator.study import json_schema
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.program import PACKAGE, program

TEMPLATES = Path(PACKAGE) / "orchestrator" / "workspace"
RENAMED = {"gitignore": ".gitignore"}  # under its own name it would hide files of this package from git


def create(folder: Path) -> list[Path]:
    """Write the workspace and return its files. Raises UserError where something is in the way; nothing is replaced.

    A folder may hold hidden entries (.git, .venv) that are none of the workspace's.
    """
    files = contents()
    try:
        taken = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") or p.name in files)
    except FileNotFoundError:
        taken = []
    except OSError as error:
        raise UserError(f"{folder}: cannot be a workspace: {error.strerror}; choose another folder") from None
    if taken:
        shown = ", ".join(taken[:5]) + (", ..." if len(taken) > 5 else "")
        raise UserError(f"{folder}: is not empty ({shown}); choose a new folder, nothing there was changed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with open(folder / name, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return [folder / name for name in files]


def contents() -> dict[str, str]:
    """Name -> text of each file of a new workspace."""
    found = {RENAMED.get(path.name, path.name): path.read_text("utf-8") for path in sorted(TEMPLATES.iterdir())}
    found["Makefile"] = found["Makefile"].replace("@PROGRAM@", program(relative=False))
    return found | {json_schema.FILE: json_schema.text()}
