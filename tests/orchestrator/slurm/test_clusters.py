"""Jobs on another cluster (`slurm.clusters`, SLURM_CLUSTERS): every question about them goes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import commands, launchers, sbatch, site_limits
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import selected_cluster, study_dir
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import queueing, selection
from ablatrix.orchestrator.verbs import cancel
from ablatrix.orchestrator.verbs.plan import Options, make_plan, runs_to_queue
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import read_events
from tests.support.fake_slurm import FakeSlurm
from tests.support.plans import FIVE, expand


@pytest.fixture
def fake(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    fake.set_cluster("beta")
    monkeypatch.setenv("ABLATRIX_VISIBLE_SECONDS", "0")
    yield fake
    selected_cluster.select("")


def queue_study(folder: Path, cluster: str) -> study_dir.Study:
    runs = expand(folder, FIVE)
    study = study_dir.create_study(folder / "out/s", "s", folder / "e.yaml", {}, runs, fields={"cluster": cluster})
    members = queueing.claim(selection.select(study_state.collect(study)).chosen, print)
    jobs = [[member] for member in members]
    batch = queueing.prepare(study, jobs, SlurmSettings(clusters=cluster), queueing.take_snapshot(study))
    queueing.queue(launchers.make("sbatch"), batch)
    (script,) = (study.folder / "logs").glob("*.sbatch")
    assert f"#SBATCH --clusters={cluster}\n" in script.read_text()
    return study


def test_jobs_on_another_cluster_are_found_and_cancelled_there(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = queue_study(tmp_path, "beta")
    queued = [event for event in read_events(study.runs[0].folder) if event["event"] == "queued"]
    assert queued[0]["cluster"] == "beta"  # whose limits apply
    selected_cluster.select("")  # another process, whose shell prefers another cluster
    monkeypatch.setenv("SLURM_CLUSTERS", "gamma")
    states = study_state.collect(study_dir.load_study(tmp_path / "out/s"))
    assert {state.state for state in states} == {"queued"}
    assert fake.jobs()
    cancel.cancel_runs(states[:1])
    assert not fake.jobs()


def test_the_shells_cluster_is_the_studys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch would obey SLURM_CLUSTERS: it is written down, as the next shell may not have it."""
    monkeypatch.setenv("SLURM_CLUSTERS", "beta")
    assert sbatch.sbatch_options(SlurmSettings())["clusters"] == "beta"
    assert "SLURM_CLUSTERS" in commands.foreign_variables()
    expand(tmp_path, FIVE)
    assert load_experiment(tmp_path / "e.yaml").experiment.slurm.clusters == "beta"
    monkeypatch.setenv("SLURM_CLUSTERS", "beta,gamma")
    assert SlurmSettings().clusters is None


def test_a_study_at_work_stays_on_its_cluster(fake: FakeSlurm, tmp_path: Path) -> None:
    queue_study(tmp_path, "beta")
    file = tmp_path / "e.yaml"
    file.write_text(file.read_text() + "launcher: sbatch\nslurm: {clusters: gamma}\n")
    plan = make_plan(Options(file))
    plan.folder = tmp_path / "out/s"
    with pytest.raises(UserError, match="runs are queued or running on cluster beta"):
        runs_to_queue(plan)
    for job in fake.jobs():  # it has left the queue
        (fake.home / f"jobs/{job}/job").unlink()
    runs_to_queue(plan)
    fake.set_cluster("gamma")
    assert site_limits.array_limits().tasks == 1001  # gamma is asked from now on


def test_a_cluster_that_does_not_tell_its_limits(fake: FakeSlurm) -> None:
    selected_cluster.select("gamma")
    assert site_limits.array_limits().tasks == 1001
    assert commands.queue() == {}
