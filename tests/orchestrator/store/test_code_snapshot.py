"""The code snapshot: the same code once, other code elsewhere, and complete."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator.store import code_snapshot
from tests.support.checkout import copy_checkout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the running code, without git, that the snapshot takes for its own."""
    root = tmp_path / "checkout"
    copy_checkout(root)
    monkeypatch.setattr(code_snapshot, "code_root", lambda: root)
    return root


def files(folder: Path) -> dict[str, bytes]:
    """The files of a checkout or a snapshot, those behind links once: below ablatrix/."""
    found = (Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names)
    named = {str(path.relative_to(folder)): path for path in sorted(found)}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(code_snapshot.LINKED)}


def test_the_same_code_is_stored_once_and_other_code_beside_it(checkout: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = code_snapshot.take(store)
    assert files(first) == files(checkout)
    assert code_snapshot.take(store) == first
    (checkout / "trainer" / "loop.py").write_text("# other\n")
    second = code_snapshot.take(store)
    assert second != first
    assert "# other\n" not in (first / "ablatrix/trainer/loop.py").read_text()
    assert sorted(path.name for path in store.iterdir()) == sorted([first.name, second.name])


def test_half_a_snapshot_of_a_killed_submit_is_swept(checkout: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    taken = code_snapshot.take(store)
    half = store / f".{taken.name}.4711.0badcafe.tmp"
    (half / "trainer").mkdir(parents=True)
    assert code_snapshot.take(store) == taken
    assert [path.name for path in store.iterdir()] == [taken.name]


def test_files_that_were_purged_come_back(checkout: Path, tmp_path: Path) -> None:
    taken = code_snapshot.take(tmp_path / "store")
    (taken / "ablatrix" / "trainer" / "loop.py").unlink()
    shutil.rmtree(taken / "ablatrix" / "models")
    assert code_snapshot.take(tmp_path / "store") == taken
    assert files(taken) == files(checkout)


def test_in_git_untracked_files_are_taken_and_ignored_ones_are_not(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    (checkout / ".gitignore").write_text("secret.py\n")
    (checkout / "mine.py").write_text("x = 1\n")
    (checkout / "secret.py").write_text("x = 2\n")
    (checkout / "notes.txt").write_text("no code\n")
    (checkout / "env" / "lib").mkdir(parents=True)  # a virtual environment that .gitignore does not name
    (checkout / "env" / "pyvenv.cfg").touch()
    (checkout / "env" / "lib" / "huge.py").write_text("x = 3\n")
    for name in ("tests", "docs/recipes", "benchmarks", "tools"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "no_job_needs_it.py").touch()
    taken = files(code_snapshot.take(tmp_path / "store"))
    assert not [name for name in taken if "no_job_needs_it" in name]
    assert taken["mine.py"] == b"x = 1\n"
    assert not taken.keys() & {"secret.py", "notes.txt", ".gitignore", "env/lib/huge.py"}
    assert "ablatrix/sbatch/array.sbatch.j2" in taken


def test_a_hook_of_git_does_not_bring_its_repository_along(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real hook of another repository, whose variables submit would inherit."""
    other, seen = tmp_path / "other", tmp_path / "seen"
    for root in (checkout, other):
        subprocess.run(["git", "init", "-q", root], check=True)
        (root / f"only_{root.name}.py").touch()
        subprocess.run(["git", "-C", root, "add", "-A"], check=True)
    hook = other / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nenv -0 > '{seen}'\n")
    hook.chmod(0o755)
    git = ["git", "-C", other, "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    inherited = dict(entry.split("=", 1) for entry in seen.read_text().split("\0") if entry.startswith("GIT_"))
    assert "GIT_INDEX_FILE" in inherited
    named = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_OBJECT_DIRECTORY": tmp_path, "GIT_NAMESPACE": "x"}
    # relative ones are meant from the top of the other repository
    index = {"GIT_INDEX_FILE": str(other / ".git/index")}
    for name, value in {**inherited, **index, **{name: str(value) for name, value in named.items()}}.items():
        monkeypatch.setenv(name, value)
    taken = files(code_snapshot.take(tmp_path / "store"))
    assert "only_checkout.py" in taken and "only_other.py" not in taken
    assert not code_snapshot.git("rev-parse", "HEAD"), "only the other one has a commit"


def test_the_snapshot_runs_without_its_checkout(checkout: Path, tmp_path: Path) -> None:
    taken = code_snapshot.take(tmp_path / "store")
    shutil.rmtree(checkout)
    code = "import ablatrix; from ablatrix.orchestrator.report import pages; "
    code += "print(ablatrix.__file__, pages.TEMPLATES.is_dir())"
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(command, env={"PYTHONPATH": str(taken)}, capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(taken / "ablatrix/__init__.py"), "True"]


def test_modules_of_the_users_own_are_taken_from_the_working_folder(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hiding = ("trainer.py", "models/parts.py", "random.py", "yaml.py", "json.py")  # ours, Python's, a requirement's
    for name in ("mine/deep/parts.py", "mine/notes.txt", "helper.py", "other/unused.py", *hiding):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    monkeypatch.chdir(tmp_path / "work")
    config = {
        "model.feedforward": "mine.deep.parts:MyMLP",
        "callbacks": ["json:Nothing", "models.parts:X"],
        "trainer.device": "cuda:0",
    }
    own = code_snapshot.own_modules([config])
    assert own == {"mine", "json", "models"}
    plain, taken = files(code_snapshot.take(tmp_path / "store")), files(code_snapshot.take(tmp_path / "store", own))
    assert taken.keys() - plain.keys() == {"mine/deep/parts.py", "helper.py"}
    assert plain.items() <= taken.items(), "nothing of the running code is replaced"
