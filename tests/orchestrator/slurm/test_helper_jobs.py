"""The report job and the follow-up: what they ask for, and that there is one of each per study."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import commands, helper_jobs
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.store import code_snapshot
from ablatrix.orchestrator.store.study_dir import LOGS, Study
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from tests.support.fake_slurm import FakeSlurm


def make_batch(folder: Path, settings: SlurmSettings | None = None) -> Batch:
    study = Study(folder / "out" / "s", "s", "s.yaml", 0.0, {}, [])
    (study.folder / LOGS).mkdir(parents=True, exist_ok=True)
    return Batch(study, [], "0123456789abcdef", settings or SlurmSettings(), folder / "code")


@pytest.mark.parametrize("extra", ["gres", "gpus", "gpus-per-task", "mem-per-gpu", "exclusive", "nodelist", "licenses"])
def test_a_helper_job_asks_for_one_core_whatever_the_runs_ask_for(extra: str) -> None:
    settings = SlurmSettings(
        partition="gpu", account="lab", nodes=4, cpus_per_task=32, mem="500G", constraint="a100",
        gpus_per_node=0 if "gpus" in extra else 8, time="2-00:00:00",
        extra={extra: "2", "reservation": "course", "mail-user": "me@example.org"},
    )  # fmt: skip
    assert helper_jobs.options(settings) == {
        **{"partition": "gpu", "account": "lab", "reservation": "course", "mail-user": "me@example.org"},
        **{"nodes": 1, "ntasks": 1, "cpus-per-task": 1, "time": 30, "mem": "2048M"},
    }


def test_memory_is_asked_for_where_the_runs_ask_for_it() -> None:
    assert "mem" not in helper_jobs.options(SlurmSettings())
    assert helper_jobs.options(SlurmSettings(mem="1G"))["mem"] == "1024M"
    assert helper_jobs.options(SlurmSettings(extra={"mem-per-cpu": "4G"}))["mem"] == "2048M"


def test_a_setting_moves_helper_jobs_to_another_partition() -> None:
    settings = SlurmSettings(partition="gpu", qos="gpu", helper_jobs={"partition": "cpu", "qos": "normal"})
    assert helper_jobs.options(settings)["partition"] == "cpu"
    assert helper_jobs.options(settings)["qos"] == "normal"


def test_a_study_has_one_waiting_report_job(fake: FakeSlurm, tmp_path: Path) -> None:
    batch, another = make_batch(tmp_path), make_batch(tmp_path / "another")
    assert helper_jobs.queue_report(another, ["9"]).endswith("as job 1")
    assert helper_jobs.queue_report(batch, ["9"]).endswith("as job 2")
    assert helper_jobs.describe(batch.study, commands.queue()) == ["report: job 2 waits for the runs to end"]
    assert helper_jobs.queue_report(batch, ["9", "10"]).endswith("as job 3")
    assert sorted(fake.jobs()) == [1, 3]
    assert helper_jobs.cancel(batch.study, running=True) == ["3"]
    assert sorted(fake.jobs()) == [1]


@pytest.mark.parametrize("kind", [helper_jobs.REPORT, helper_jobs.FOLLOW_UP])
def test_a_helper_job_finds_its_module_in_the_code_snapshot(kind: str, tmp_path: Path) -> None:
    """The study has no study.json, so the job gets as far as saying that."""
    batch, code = make_batch(tmp_path), code_snapshot.take(tmp_path / "code")
    command = shlex.split(helper_jobs.script(batch, kind).splitlines()[-1])[1:]
    environ = os.environ | {"PYTHONPATH": str(code)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert f"{batch.study.folder}: " in done.stdout + done.stderr
    assert "No module" not in done.stderr
