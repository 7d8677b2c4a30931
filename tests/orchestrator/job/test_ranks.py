"""What the processes of a run get as addresses, and which studies can have several."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.job import rendezvous
from ablatrix.orchestrator.status import cost
from ablatrix.orchestrator.store import job_command, study_dir, submit_attempts
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.node_layout import Layout
from ablatrix.orchestrator.submit import preflight
from ablatrix.orchestrator.submit.local_queue import LocalQueue
from ablatrix.trainer.rundir import loss_csv, network, run_files
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.events import read_events
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

SCONTROL = """#!/bin/sh
[ "$1" = show ] || echo "$@" >> asked
[ "$2" = hostnames ] && printf 'nowhere-%s\\n' 7 8 || echo "NodeName=$3 NodeAddr=127.0.0.1 State=IDLE"
"""


@pytest.fixture
def slurm_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node of job 12, whose nodes have names that nobody can look up."""
    script = tmp_path / "scontrol"
    script.write_text(SCONTROL)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in {"JOB_ID": "12", "NODEID": "1", "JOB_NODELIST": "nowhere-[7-8]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("STEP_NODELIST", "RESTART_COUNT", "ARRAY_JOB_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.delenv(network.GLOO_INTERFACE, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")


@pytest.mark.usefixtures("slurm_node")
@pytest.mark.parametrize("known", [False, True])
def test_a_lost_node_is_a_requeue_and_a_failed_one_is_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    loaded = load_experiment(workspace.write_study(iters=5000), ["trainer.strategy=ddp", "slurm.nodes=2"])
    runs = matrix.runs(loaded, preflight.vocabulary)[:1]
    (run,) = study_dir.create_study(workspace.folder / "out/study", "study", Path("study.yaml"), {}, runs).runs
    submit_attempts.take(run.folder, 1)
    for name, value in workspace.env().items():
        monkeypatch.setenv(name, value)
    command = job_command.task_command([(run.folder, 1)], Layout(2, 1))
    started = [
        subprocess.Popen(command, cwd=workspace.folder, env={**os.environ, "SLURM_NODEID": str(node)})
        for node in (0, 1)
    ]
    try:
        wait_for(lambda: len(loss_csv.parse_rows(run_files.read_text(run.folder / run_files.LOSS))) > 3)
        task_pid = started[1].pid
        rank = int(Path(f"/proc/{task_pid}/task/{task_pid}/children").read_text())
        if not known:
            started[1].kill()  # as power loss does: nothing is said
        os.kill(rank, signal.SIGKILL)
        if known:
            assert started[0].wait(PATIENCE) == 1
            started[1].wait(PATIENCE)  # it says why, and may be the slower one
            (failed,) = (event for event in read_events(run.folder) if event["event"] == "failed")
            assert "killed by SIGKILL" in failed["reason"]  # the peer that was left may report so afterwards
        else:
            wait_for(lambda: "requeue 12" in run_files.read_text(workspace.folder / "asked"))
            assert "failed" not in [event["event"] for event in read_events(run.folder)]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("slurm_node")
def test_processes_of_a_second_node(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rendezvous.environments(Layout(2, 2), Path("out/run"))
    assert [(e["RANK"], e["LOCAL_RANK"], e["WORLD_SIZE"]) for e in (first, second)] == [
        ("2", "0", "4"),
        ("3", "1", "4"),
    ]
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert first[network.GLOO_INTERFACE] == "lo"
    assert first["OMP_NUM_THREADS"] == "4"
    port = first["MASTER_PORT"]
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv(network.GLOO_INTERFACE, "ib0")
    lead = rendezvous.environments(Layout(2, 2), Path("out/run"))[0]
    assert (lead["RANK"], lead["MASTER_PORT"], lead[network.GLOO_INTERFACE]) == ("0", port, "ib0")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert rendezvous.environments(Layout(2, 2), Path("out/run"))[0]["MASTER_PORT"] != port


def test_one_process_gets_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    (environment,) = rendezvous.environments(Layout(), Path("out/run"))
    assert not set(rendezvous.VARIABLES) & set(environment)


@pytest.mark.parametrize(
    ("slurm", "settings", "message"),
    [
        ("nodes: 2", {}, "trainer.strategy: single, but a job has 2 processes"),
        ("nodes: 2, runs_per_job: 2", {"strategy": "ddp"}, "leave out slurm.runs_per_job"),
        ("nodes: 2, gpus_per_node: 4", {"strategy": "ddp"}, "2 windows cannot be split evenly among 8 processes"),
    ],
)
def test_what_cannot_be_shared(workspace: Workspace, slurm: str, settings: dict[str, str], message: str) -> None:
    path = workspace.write_study()
    path.write_text(path.read_text().replace("mem: 1G", f"mem: 1G, {slurm}"))
    sets = [f"trainer.{name}={value}" for name, value in settings.items()]
    with pytest.raises(ConfigError, match=message):
        matrix.runs(load_experiment(path, sets), preflight.vocabulary)


def test_gpu_hours_are_those_of_all_nodes(workspace: Workspace) -> None:
    path = workspace.write_study()
    sets = ["trainer.strategy=ddp", "trainer.batch_size=8", "slurm.gpus_per_node=4"]
    hours = []
    for nodes in (1, 2):
        loaded = load_experiment(path, [*sets, f"slurm.nodes={nodes}"])
        runs = matrix.runs(loaded, preflight.vocabulary)[:1]
        smoke = workspace.folder / cost.SMOKE / runs[0].id
        smoke.mkdir(parents=True, exist_ok=True)
        rows = "1,5.0,3600,,,,,\n2,5.0,3600,,,,,\n"
        (smoke / run_files.LOSS).write_text(",".join(loss_csv.COLUMNS) + "\n" + rows)
        hours.append(cost.hours_per_run(workspace.folder, runs, loaded.experiment, {})["baseline"])
    assert hours == [4 * 20, 8 * 20]


def test_local_slots_have_a_device_for_each_process() -> None:
    assert LocalQueue(["0", "1", "2", "3", "4"]).slots(1, 2) == ["0,1", "2,3"]
    with pytest.raises(UserError, match=r"8 processes share a run .* but this machine has 2 GPUs"):
        LocalQueue(["0", "1"]).slots(1, 8)


def test_a_local_study_with_two_processes_a_run(workspace: Workspace) -> None:
    workspace.run("submit", workspace.write_study("alone"), "--launcher", "local", "--only", "rope")
    sets = ["--set", "trainer.strategy=ddp", "--set", "slurm.processes_per_node=2"]
    workspace.run("submit", workspace.write_study("shared"), "--launcher", "local", "--only", "rope", *sets)
    summary = run_files.read_json(workspace.run_folder("rope", "shared") / run_files.SUMMARY) or {}
    assert summary["processes"] == 2
    assert workspace.run_folder("rope", "shared").name == workspace.run_folder("rope", "alone").name
    for shared, alone in zip(workspace.loss("rope", "shared")[1:], workspace.loss("rope", "alone")[1:], strict=True):
        assert float(shared[1]) == pytest.approx(float(alone[1]), abs=1e-4)
