"""Commands in a folder whose modules have the names of Ablatrix's packages, of Python's modules and of requirements."""

import os
import subprocess
import sys

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.workspace import Workspace

NAMES = ("models.py", "trainer.py", "models/__init__.py", "trainer/__init__.py")


@pytest.fixture(autouse=True)
def real_imports(workspace: Workspace) -> None:
    workspace.python = sys.executable


def test_modules_on_the_users_path_do_not_replace_ours(workspace: Workspace) -> None:
    """Those in the working folder: tests/test_installed.py."""
    folder = workspace.folder / "elsewhere"
    workspace.environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(code_root())])
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"raise SystemExit({name!r})\n")
    assert "7 runs" in workspace.run("plan", workspace.write_study()).stdout
    command = [sys.executable, "-m", "cache_warm", "--help"]
    subprocess.run(command, cwd=workspace.folder, env=workspace.env(), capture_output=True, check=True)


def test_a_single_run_is_ours(workspace: Workspace) -> None:
    """`-m trainer` itself would be the user's where he has a trainer."""
    for name in ("models.py", "random.py", "yaml.py"):
        (workspace.folder / name).write_text(f"raise SystemExit({name!r})\n")
    flags = ["--data.file_path=x", "--trainer.max_iters=0"]
    command = [sys.executable, "-m", "trainer", *flags]
    ended = subprocess.run(
        command, cwd=workspace.folder, env=workspace.env(), capture_output=True, text=True, check=False
    )
    assert "error: " in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_a_callback_with_a_name_of_ours_is_refused(workspace: Workspace) -> None:
    (workspace.folder / "trainer.py").write_text("class Mine: ...\n")
    study = workspace.write_study()
    study.write_text(study.read_text().replace("  system:", "  callbacks: {custom: ['trainer:Mine']}\n  system:"))
    refused = workspace.run("check", study, "--launcher", "local", code=2)
    shown = " ".join((refused.stdout + refused.stderr).split())
    assert "Ablatrix has a package of the name trainer; rename yours, for example to my_trainer" in shown
    assert "write my_trainer:Mine" in shown
