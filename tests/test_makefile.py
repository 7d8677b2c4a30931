"""What `make` may remove: a virtual environment, and nothing behind a link."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "requirements-cuda.txt", "pyproject.toml"):
        shutil.copy(code_root() / name, folder / name)
    shutil.copytree(code_root() / "requirements", folder / "requirements")
    return folder


def make(checkout: Path, *words: str, code: int = 2) -> str:
    """Run make with a pip that installs nothing."""
    command = ["make", f"PYTHON={sys.executable}", "PIP=-c pass", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


TARGETS = {".venv": ".venv/.installed-cpu", ".venv-tools": ".venv-tools/.installed"}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("content", ["pyvenv.cfg", "precious"])
@pytest.mark.parametrize("link", [True, False])
def test_only_a_virtual_environment_is_changed(checkout: Path, name: str, content: str, link: bool) -> None:
    folder = checkout.parent / "shared" if link else checkout / name
    folder.mkdir()
    (folder / content).write_text("")
    (folder / ".installed-cuda").write_text("")
    if link:
        (checkout / name).symlink_to(folder)
    elif content == "pyvenv.cfg":
        return
    for target in (TARGETS[name], "clean"):
        shown = make(checkout, "TORCH=cpu", target)
        assert f"{name} is {'a link' if link else 'not a virtual environment'}" in shown
        assert "make VENV=FOLDER" in shown
    assert {path.name for path in folder.iterdir()} == {content, ".installed-cuda"}
    assert (checkout / name).is_symlink() == link


def test_a_dangling_link_is_refused(checkout: Path) -> None:
    (checkout / ".venv").symlink_to(checkout.parent / "gone")
    assert ".venv is a link" in make(checkout, "TORCH=cpu", ".venv/.installed-cpu")
    assert not (checkout.parent / "gone").exists()


def test_git_ignores_a_link_as_it_does_a_folder(checkout: Path) -> None:
    shutil.copy(code_root() / ".gitignore", checkout / ".gitignore")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    for name in (".venv", ".venv-tools", ".cache", "out", "data"):
        (checkout / name).symlink_to(checkout.parent)
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=checkout, check=False).returncode == 0, name
