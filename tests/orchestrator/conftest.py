"""Fixtures of the orchestrator's tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support import shell_stubs
from tests.support.fake_slurm import FakeSlurm
from tests.support.shell_stubs import RECORD


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with stand-ins on PATH."""
    shell_stubs.install(tmp_path / "bin")
    monkeypatch.setattr(sys, "executable", str(shell_stubs.program(tmp_path / "env/python")))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(RECORD, str(tmp_path / "record"))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/cat").symlink_to("/bin/cat")
    monkeypatch.setenv("ABLATRIX_TOOLS", str(tmp_path / "tools"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "it's work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm of programs on PATH that answer at once; the working folder is the test's."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return fake
