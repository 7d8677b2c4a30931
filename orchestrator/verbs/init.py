"""The verb `init`: a small workspace in a new folder, wherever the package is installed."""

from __future__ import annotations

import shlex
from pathlib import Path

from ablatrix.orchestrator.study import json_schema
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.program import PACKAGE, program

TEMPLATES = Path(PACKAGE) / "orchestrator" / "workspace"
RENAMED = {"gitignore": ".gitignore"}  # under its own name it would hide files of this package from git


def init(folder: Path) -> None:
    """Write a workspace (see `create_workspace`) and print its files and what to do next."""
    for path in create_workspace(folder):
        print(path)
    verb = program(relative=False)
    print(
        f"\nnext: cd {shlex.quote(str(folder))}\n"
        f"      {verb} warm-cache --tokenizer sample     # a tokenizer and a small corpus, made here, no network\n"
        f"      {verb} submit ablation.yaml --wait && {verb} report"
    )


def create_workspace(folder: Path) -> list[Path]:
    """Write the workspace and return its files. Raises UserError where the folder is not empty; replaces nothing.

    Other hidden entries than the workspace's (.git, .venv) may be there.
    """
    files = workspace_files()
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
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return [folder / name for name in files]


def workspace_files() -> dict[str, str]:
    """Return name -> text of each file of a new workspace."""
    found = {RENAMED.get(path.name, path.name): path.read_text("utf-8") for path in sorted(TEMPLATES.iterdir())}
    found["Makefile"] = found["Makefile"].replace("@PROGRAM@", program(relative=False))
    return found | {json_schema.FILE: json_schema.text()}
