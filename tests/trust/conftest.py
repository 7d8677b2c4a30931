"""A finished study for the tests that look at one, or damage it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import one_at_a_time
from tests.support import finished_runs
from tests.support.forked_python import ForkedPython
from tests.support.workspace import Workspace


@pytest.fixture(scope="session")
def finished_study(shared_dir: Path, corpus: Path, offline_cache: Path, forked_python: ForkedPython) -> Workspace:
    """Made once for all processes. Change nothing in it."""
    folder = shared_dir / "finished"
    workspace = Workspace(folder, corpus, offline_cache, python=forked_python.python)
    with one_at_a_time(shared_dir, "finished"):
        if (folder / "out" / "study" / "report" / "report.html").exists():
            return workspace
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return finished_runs.make(workspace)


@pytest.fixture
def work(finished_study: Workspace, tmp_path: Path) -> Workspace:
    """The test's own copy of it, to be damaged."""
    return finished_runs.copy(finished_study, tmp_path / "user")
