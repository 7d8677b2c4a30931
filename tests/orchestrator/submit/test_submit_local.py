"""The main path on this machine: submit, status, report, and what a second submit does."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.trainer.config import load
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.waiting import PATIENCE
from tests.support.workspace import CELLS, Workspace, without_clock


def test_seven_runs_from_file_to_report(workspace: Workspace) -> None:
    study = workspace.write_study()
    workspace.run("submit", study, "--launcher", "local")
    states = workspace.states()
    assert tuple(states) == CELLS
    assert {state["state"] for state in states.values()} == {"done"}

    for cell in CELLS:
        folder = workspace.run_folder(cell)
        for name in (
            run_files.ARGS,
            run_files.LOSS,
            run_files.MODEL,
            run_files.SUMMARY,
            run_files.PROVENANCE,
            run_files.EVENTS,
        ):
            assert (folder / name).is_file(), name
        assert load(folder / run_files.CONFIG).fingerprint() == folder.name.rpartition("-")[2]
        assert workspace.loss(cell)[-1][0] == "20"
    assert len({json.dumps(workspace.loss(cell)) for cell in CELLS}) == 7, "two cells trained alike"

    again = workspace.run("submit", study, "--launcher", "local")
    assert "7 done already" in again.stdout
    events = read_events(workspace.run_folder("rope"))
    assert [event["event"] for event in events].count("started") == 1

    shown = workspace.run("report")
    report = workspace.folder / "out" / "study" / "report"
    assert "one seed only" in shown.stdout
    for name in ("summary.csv", "comparison.csv", "loss_curves.png", "effects.png", "report.md", "report.html"):
        assert (report / name).stat().st_size > 0, name
    assert shown.stdout.splitlines()[-1] == "report: out/study/report/report.html"
    with (report / "summary.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 8


def test_planted_harm_has_the_right_sign(workspace: Workspace) -> None:
    extra = "  broken: {trainer.learning_rate: 1e-7}\n"
    study = workspace.write_study(iters=60)
    text = (
        study.read_text().replace("  cosine: {trainer.use_cosine: true}\n", extra).replace("slurm:", "seeds: 3\nslurm:")
    )
    study.write_text(text)
    workspace.run("submit", study, "--launcher", "local", "--only", "baseline", "--only", "broken")
    workspace.run("report")
    with (workspace.folder / "out/study/report/comparison.csv").open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    assert float(rows["broken"]["effect"]) > 0.5
    assert rows["broken"]["verdict"] == "hurts"


def test_failed_runs_are_named_and_rerun_only_on_request(workspace: Workspace) -> None:
    study = workspace.write_study()
    workspace.run("submit", study, "--launcher", "local", "--only", "baseline")
    run = workspace.run_folder("rope")
    (run / "loss.csv").mkdir()  # the trainer cannot write its log there
    failed = workspace.run("submit", study, "--launcher", "local", "--only", "rope", code=1)
    state = workspace.states()["rope"]
    assert state["state"] == "failed"
    assert state["reason"]
    assert "rope" in failed.stdout

    (run / "loss.csv").rmdir()
    refused = workspace.run("submit", study, "--launcher", "local", "--only", "rope", code=1)
    assert "--retry" in refused.stdout
    assert workspace.states()["rope"]["state"] == "failed"
    workspace.run("submit", study, "--launcher", "local", "--only", "rope", "--retry")
    assert workspace.states()["rope"]["state"] == "done"
    assert workspace.loss("rope")[-1][0] == "20"


def test_ctrl_c_leaves_checkpoints_and_the_same_command_goes_on(workspace: Workspace) -> None:
    workspace.python = sys.executable  # signals through all of a run's processes
    study = workspace.write_study(iters=4000, ckpt=1000)
    words = ("submit", study, "--launcher", "local", "--only", "baseline")
    process = subprocess.Popen(
        workspace.command(*words),
        cwd=workspace.folder,
        env=workspace.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        workspace.wait(lambda states: states["baseline"]["iter"] >= 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"rerun the command to continue" in errors
    assert b"Traceback" not in errors
    stopped = workspace.states()["baseline"]
    assert stopped["state"] == "stopped"
    assert 20 <= stopped["iter"] < 4000

    folder = workspace.run_folder("baseline")
    assert "resumed" not in [event["event"] for event in read_events(folder)]
    process = subprocess.Popen(
        workspace.command(*words),
        cwd=workspace.folder,
        env=workspace.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        workspace.wait(lambda states: states["baseline"]["iter"] > stopped["iter"])
        assert "resumed" in [event["event"] for event in read_events(folder)]
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def test_smoke_first_and_nothing_else_when_it_fails(workspace: Workspace) -> None:
    study = workspace.write_study()
    wsd = "  wsd: {trainer.schedule: wsd, trainer.decay_steps: 10, trainer.optimizer: muon}\n"
    study.write_text(study.read_text().replace("  cosine: {trainer.use_cosine: true}\n", wsd))
    workspace.run("submit", study, "--launcher", "local", "--smoke", "2", "--only", "wsd")
    assert workspace.states()["wsd"]["state"] == "done"
    smoke = workspace.folder / "out/study/smoke"
    assert json.loads(next(smoke.glob("wsd-*/summary.json")).read_text())["iters"] == 2
    assert "cells measured so far: 1" in workspace.run("plan", study).stdout


def test_a_budget_is_kept(workspace: Workspace) -> None:
    study = workspace.write_study(iters=20)
    text = study.read_text().split("  rmsnorm:")[0] + "seeds: [1]\n"
    study.write_text(text + "budget: 1e-9\n")
    only = ("submit", study, "--launcher", "local", "--only", "baseline", "--only", "swiglu")
    refused = workspace.run("submit", study, "--launcher", "local", "--smoke", "3", code=2)
    assert "node-hours, the budget is 1e-09" in refused.stderr
    assert workspace.states() == {}
    assert "of a budget of 1e-09" in workspace.run("plan", study).stdout
    workspace.run(*only, "--over-budget")
    assert workspace.states()["baseline"]["state"] == "done"
    study.write_text(text + "budget: 5\n")
    assert "of a budget of 5" in workspace.run("plan", study).stdout


def test_rerun_puts_the_old_result_aside(workspace: Workspace) -> None:
    study = workspace.write_study()
    workspace.run("submit", study, "--launcher", "local", "--only", "rope")
    folder = workspace.run_folder("rope")
    before = workspace.loss("rope")
    workspace.run("submit", study, "--launcher", "local", "--only", "rope", "--rerun", "rope")
    assert without_clock(Path(f"{folder}.old-1")) == before
    assert without_clock(folder) == before
    assert workspace.states()["rope"]["attempt"] == 1


def test_runs_at_work_are_not_hidden_by_an_edit_and_are_waited_for(workspace: Workspace) -> None:
    study = workspace.write_study(iters=100_000, ckpt=1000)
    words = workspace.command("submit", study, "--launcher", "local", "--only", "baseline")
    with subprocess.Popen(words, cwd=workspace.folder, env=workspace.env(), stdout=subprocess.DEVNULL) as process:
        workspace.wait(lambda states: states["baseline"]["iter"] >= 1)
        changed = ("submit", study, "--launcher", "local", "--set", "trainer.batch_size=1", "--only", "baseline")
        assert "cancel them first" in workspace.run(*changed, code=2).stderr
        place = {"cwd": workspace.folder, "env": workspace.env()}
        with subprocess.Popen([*words, "--wait"], stdout=subprocess.PIPE, text=True, **place) as second:
            assert second.stdout and "1 queued or running already\n" in iter(second.stdout.readline, "")
            assert "cancelled 1 run\n" in workspace.run("cancel", "baseline", "--yes").stdout
            shown, _ = second.communicate(timeout=PATIENCE)
        assert second.returncode == 0 and "1 stopped" in shown, "it has waited for the run of the first submit"
        process.wait(timeout=PATIENCE)
    assert workspace.states()["baseline"]["state"] == "stopped"


@pytest.mark.parametrize("verb", ["plan", "submit", "check"])
def test_a_bad_experiment_creates_nothing(workspace: Workspace, verb: str) -> None:
    study = workspace.write_study(extra="desing: [baseline]\n")
    result = workspace.run(verb, study, code=2)
    assert "desing: unknown key (did you mean design?)" in result.stderr
    assert sorted(path.name for path in workspace.folder.iterdir()) == ["study.yaml"]


def test_logs_show_and_diff(workspace: Workspace) -> None:
    study = workspace.write_study()
    words = ("--launcher", "local", "--only", "baseline", "--only", "rope", "--set", "trainer.max_iters=15")
    workspace.run("submit", study, *words)
    assert "iter 15/15" in workspace.run("logs", "rope").stdout
    assert "iter 15/15" in workspace.run("logs", "rope", "--follow").stdout
    assert "model.rope" in workspace.run("diff", "baseline", "rope").stdout
    shown = workspace.run("show", "rope").stdout
    assert "model.rope=true" in shown
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:6] in ("model.", "traine")}
    assert lines["model.n_embd"] == ["48", "model_type", "gpt-nano"]
    assert lines["model.rope"] == ["true", "feature", "rope,", f"{study}:11"]
    assert lines["trainer.batch_size"] == ["2", f"{study}:5"]
    assert lines["trainer.max_iters"] == ["15", "--set"]
    assert "no such run" in workspace.run("show", "rpoe", code=2).stderr
    assert "nothing to cancel" in workspace.run("cancel", "--all", "--yes").stdout


def test_a_process_that_dies_before_it_can_say_so_is_a_failure(workspace: Workspace) -> None:
    workspace.write_study(extra="design: [baseline]\n")
    (workspace.folder / "sitecustomize.py").write_text(
        "import sys\nif any(word.endswith('job.task') for word in sys.orig_argv):\n"
        "    raise SystemExit('no license for this Python')\n"
    )
    workspace.environment = {"PYTHONPATH": f"{workspace.folder}:{workspace.env()['PYTHONPATH']}"}
    broken = workspace.run("submit", "study.yaml", "--launcher", "local", code=1)
    assert 'ended before the trainer started: "' in broken.stderr and "no license" in broken.stderr
    (log,) = (workspace.folder / "out" / "study" / "logs").glob("*.out")
    assert "no license" in log.read_text()
    assert {state["state"] for state in workspace.states().values()} == {"planned"}
