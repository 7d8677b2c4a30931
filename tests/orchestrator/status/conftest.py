"""A study of one run, and a Slurm that answers what a test wants."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from tests.support.plans import FIVE, expand
from tests.support.slurm_answers import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(commands, "available", lambda: True)
    monkeypatch.setattr(commands, "queue", cluster.queue)
    monkeypatch.setattr(commands, "ended_jobs", cluster.ended_jobs)
    return cluster


@pytest.fixture
def study(tmp_path: Path) -> Study:
    runs = expand(tmp_path, FIVE)[:1]
    return study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, runs)


@pytest.fixture
def run(study: Study) -> StudyRun:
    return study.runs[0]
