"""Batches for tests of job scripts."""

from __future__ import annotations

from pathlib import Path

from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.orchestrator.study.notify_settings import Notify
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings


def make_batch(home: Path, settings: SlurmSettings, runs: int = 2, notify: Notify | None = None) -> Batch:
    """Return a batch of `runs` jobs with one run each; writes nothing to disk."""
    folder = home / "out/study"
    members = [(StudyRun(f"cell{i}-seed1", f"cell{i}", 1, [], {}, folder / f"cell{i}-seed1"), 1) for i in range(runs)]
    study = Study(folder, "study", "study.yaml", 0.0, {}, [run for run, _ in members], notify=notify)
    return Batch(study, [[member] for member in members], "0123456789abcdef", settings, home / "code")
