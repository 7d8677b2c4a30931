"""Studies that run in stages: the first look is queued, and what its results make due follows, by whichever way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.looks import Looks
from ablatrix.orchestrator.study.notify_settings import Notify
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import selection, wave_order, waves
from ablatrix.orchestrator.submit.wave_order import Order
from ablatrix.orchestrator.terminal import live
from ablatrix.orchestrator.verbs.status import status
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.fake_slurm import FakeSlurm
from tests.support.plans import expand
from tests.support.webhook import Webhook
from tests.support.workspace import Workspace

TEXT = """\
features: {swiglu: {model.swiglu: true}, rope: {model.rope: true}}
design: [baseline, one_at_a_time]
seeds: {start: 3, up_to: 8}
"""
LOOKS = Looks((3, 5, 8), (0.01, 0.015, 0.025))
NOISE = (0.00, 0.02, -0.01, 0.01, -0.02, 0.015, -0.005, 0.005, 0.01, -0.015)  # of no pattern over cells and seeds
EFFECTS = {"rope": -0.5}  # decided at the first look; swiglu at none


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Of three cells with looks at 3, 5 and 8 seeds."""
    folder = tmp_path / "out" / "s"
    runs = expand(tmp_path, TEXT)
    fields = study_dir.plan_fields(folder, runs, LOOKS, None)
    return study_dir.create_study(folder, "s", tmp_path / "e.yaml", {}, runs, fields=fields)


def order_of(folder: Path, budget: float | None = None) -> Order:
    return Order(launcher="sbatch", settings=SlurmSettings(), exports=[], code=folder, surroundings={}, budget=budget)


def submit(study: Study, order: Order) -> list[str]:
    """Queue what a submit would queue; return what it prints."""
    printed: list[str] = []
    states = study_state.collect(study)
    held = next_stage.find_stages(study, states).held
    chosen = selection.select(states, study=study.name, held=held).chosen
    if chosen:
        waves.queue(study, order, chosen, states, printed.append)
    return printed


def finish(study: Study, fake: FakeSlurm) -> None:
    """Let every queued run end with its result, and its job leave the queue."""
    for state in study_state.collect(study):
        if state.state == "queued":
            cells = ["baseline", "swiglu", "rope"]
            noise = NOISE[(7 * state.run.seed + 3 * cells.index(state.run.cell)) % len(NOISE)]
            value = 3.0 + EFFECTS.get(state.run.cell, 0.0) + noise
            record = {"iters": 20, "tokens": 1000, "val_nll": value, "final_loss": value, "initial_loss": 10.0}
            atomic_write(state.run.folder / run_files.SUMMARY, json.dumps(record))
    for job in fake.jobs():
        fake.end(job)


def runs_by_cell(study: Study) -> dict[str, list[int]]:
    """Return cell -> seeds that are queued or done."""
    found: dict[str, list[int]] = {}
    for state in study_state.collect(study):
        if state.state in ("queued", "done"):
            found.setdefault(state.run.cell, []).append(state.run.seed)
    return {cell: sorted(seeds) for cell, seeds in found.items()}


FIRST = {"baseline": [1, 2, 3], "swiglu": [1, 2, 3], "rope": [1, 2, 3]}
SECOND = {"baseline": [1, 2, 3, 4, 5], "swiglu": [1, 2, 3, 4, 5], "rope": [1, 2, 3]}
ALL = {"baseline": [*range(1, 9)], "swiglu": [*range(1, 9)], "rope": [1, 2, 3]}


def test_a_submit_queues_the_first_look_and_the_job_that_goes_on(fake: FakeSlurm, study: Study, tmp_path: Path) -> None:
    printed = submit(study, order_of(tmp_path))
    assert runs_by_cell(study) == FIRST
    assert fake.jobs() == {1: 9, 2: 1}
    assert fake.dependency(2) == "afterany:1"
    assert printed[-1] == "up to 15 runs follow, depending on results; job 2 queues those that are needed when " + (
        "these have ended"
    )
    assert submit(study, order_of(tmp_path)) == [], "a second submit has nothing to do"


def test_the_follow_up_goes_from_look_to_look_and_ends_with_the_report(
    fake: FakeSlurm, study: Study, tmp_path: Path
) -> None:
    submit(study, order_of(tmp_path))
    finish(study, fake)
    printed: list[str] = []
    assert waves.resume(study, Scheduler(), printed.append)
    assert runs_by_cell(study) == SECOND
    assert fake.jobs() == {3: 4, 4: 1}
    finish(study, fake)
    assert waves.resume(study, Scheduler(), printed.append)
    assert runs_by_cell(study) == ALL
    assert printed[-1] == "queued the report after them as job 6", "no look comes after the last"
    finish(study, fake)
    assert not waves.resume(study, Scheduler(), printed.append), "done twice it does nothing"
    assert runs_by_cell(study) == ALL
    assert not fake.jobs()


def test_submits_and_time_give_the_same_runs(fake: FakeSlurm, study: Study, tmp_path: Path) -> None:
    for expected in (FIRST, SECOND, ALL, ALL):
        submit(study, order_of(tmp_path))
        assert runs_by_cell(study) == expected
        finish(study, fake)


def test_waiting_gives_the_same_runs(fake: FakeSlurm, study: Study, tmp_path: Path) -> None:
    """--wait, where no follow-up job could be queued."""
    submit(study, order_of(tmp_path))
    printed: list[str] = []
    for expected in (SECOND, ALL):
        finish(study, fake)
        go_on = waves.keep_going(study, printed.append)
        scheduler = Scheduler()
        states = study_state.collect(study, scheduler)
        study_state.read_queue(study, scheduler)
        assert go_on(states, scheduler)
        assert runs_by_cell(study) == expected


def test_a_study_whose_cells_are_all_decided_ends_with_its_report(
    fake: FakeSlurm, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFECTS, "swiglu", 0.6)
    submit(study, order_of(tmp_path))
    finish(study, fake)
    printed: list[str] = []
    assert not waves.resume(study, Scheduler(), printed.append)
    assert printed[-1] == "queued the report after them as job 3"
    assert fake.dependency(3) == ""
    assert wave_order.read(study) is None
    assert runs_by_cell(study) == FIRST


def test_a_run_that_stopped_is_waited_for_and_one_that_failed_is_not(
    fake: FakeSlurm, study: Study, tmp_path: Path
) -> None:
    submit(study, order_of(tmp_path))
    stopped, failed = study.runs[0], study.runs[9]
    finish(study, fake)
    for run, event in ((stopped, "stopped"), (failed, "failed")):
        (run.folder / run_files.SUMMARY).unlink()
        append_event(run.folder, event, reason="x", attempt=1)
    assert not waves.resume(study, Scheduler(), print), "the look has not ended: a submit continues the run"
    assert runs_by_cell(study)["rope"] == [1, 2, 3] and len(runs_by_cell(study)["baseline"]) == 2
    submit(study, order_of(tmp_path))
    finish(study, fake)
    assert waves.resume(study, Scheduler(), print)
    assert runs_by_cell(study)["baseline"] == [1, 2, 3, 4, 5]


def test_later_looks_respect_the_budget(fake: FakeSlurm, study: Study, tmp_path: Path) -> None:
    submit(study, order_of(tmp_path, budget=2.0))
    finish(study, fake)
    for number, run in enumerate(study.runs):
        if run.seed <= 3:
            append_event(run.folder, "started", time=1e9 + number)
            append_event(run.folder, "finished", time=1e9 + number + 720)
    with pytest.raises(UserError, match=r"budget: the next stage \(4 runs\) would .* over the budget of 2; "):
        waves.resume(study, Scheduler(), print)
    assert runs_by_cell(study) == FIRST


def test_status_says_which_look_runs_and_what_goes_on(
    fake: FakeSlurm, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown() -> str:
        status(str(study.folder), Path("out"), Console(width=200), watch=False, as_json=False, everything=False)
        return capsys.readouterr().out

    submit(study, order_of(tmp_path))
    out = shown()
    assert "look 1 of 3 comes when the first 3 seeds of every cell have ended" in out
    assert "up to 15 runs follow: job 2 queues those that are needed" in out
    assert "waits for look 2 of 3 to end" in out
    finish(study, fake)
    out = shown()
    assert "rope stopped at look 1 (helps); swiglu goes on with the baseline" in out
    assert "up to 10 runs follow, and no job will queue them: submit again" in out
    assert out.count("not needed: its cell has stopped by look 1") == 5
    with live.LiveStatus(study, Console(width=200), Scheduler()) as watched:
        watched.refresh()
    assert "24 runs: 10 planned, 9 done, 5 not needed" in capsys.readouterr().out
    assert "24 runs: 10 planned, 9 done, 5 not needed" in out
    for _ in range(2):
        submit(study, order_of(tmp_path))
        finish(study, fake)
    assert "runs follow" not in shown()


def test_the_follow_up_job_sends_what_a_look_has_decided_once(
    fake: FakeSlurm, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(study, order_of(tmp_path))
    finish(study, fake)
    with Webhook() as hook:
        monkeypatch.setenv("ABLATRIX_WEBHOOK", hook.url)
        noted = replace(study, notify=Notify(webhook="$ABLATRIX_WEBHOOK"))
        for _ in range(2):
            assert waves.resume(noted, Scheduler(), print)
    (sent,) = hook.received
    assert sent["event"] == "look"
    assert "look 1 of 3 has ended" in sent["text"] and "rope stopped at look 1 (helps)" in sent["text"]
    assert sent["runs"] == {"planned": 10, "done": 9, "not needed": 5}


def test_a_cancelled_study_does_not_go_on(fake: FakeSlurm, study: Study, tmp_path: Path) -> None:
    submit(study, order_of(tmp_path))
    assert wave_order.forget(study) == 0
    finish(study, fake)
    assert not waves.resume(study, Scheduler(), print)
    assert runs_by_cell(study) == FIRST


def test_the_follow_up_is_queued_again_when_a_run_is_still_active(
    fake: FakeSlurm, study: Study, tmp_path: Path
) -> None:
    """A node that failed has put an array back into the queue after the dependency was met."""
    submit(study, order_of(tmp_path))
    fake.end(2)
    assert waves.resume(study, Scheduler(), print)
    assert fake.jobs() == {1: 9, 3: 1}
    assert fake.dependency(3) == "afterany:1"


# ---- on this machine -------------------------------------------------------------------------------------------------

SCRIPT = """\
import random, sys
effect, seed = (word.partition("=")[2] for word in sys.argv[1:])
noise = random.Random(f"{effect} {seed}").gauss(0, 0.02)
print(f"iter 1: loss 4.0, val loss 4.0\\niter 2: loss 3.0, val loss {3.0 + float(effect) + noise}")
"""
LOCAL = """\
name: study
command: python script.py {flags} --seed={seed}
base: {effect: 0.0}
features: {strong: {effect: -0.5}, none: {effect: 0.0001}}
design: [baseline, one_at_a_time]
seeds: {looks: [2, 3, 4], futility: 0}
metrics: {regex: 'iter (?P<iter>[0-9]+): loss (?P<loss>[0-9.]+), val loss (?P<val_loss>[0-9.]+)'}
"""


def test_on_one_machine_submits_and_wait_give_the_same_runs(workspace: Workspace) -> None:
    (workspace.folder / "script.py").write_text(SCRIPT)
    found = []
    for name, words in (("by-wait", ["--wait"]), ("by-submits", [])):
        (workspace.folder / "study.yaml").write_text(LOCAL.replace("name: study", f"name: {name}"))
        for _ in range(1 if words else 4):
            printed = workspace.run("submit", "study.yaml", "--launcher", "local", *words).stdout
        study = study_dir.load_study(workspace.folder / "out" / name)
        done = [state.run for state in study_state.collect(study) if state.state == "done"]
        found.append(sorted((run.cell, run.seed) for run in done))
    assert "look 3 of 3 has ended" in workspace.run("status", "by-wait").stdout
    assert found[0] == found[1]
    seeds = {cell: [seed for other, seed in found[0] if other == cell] for cell in ("baseline", "strong", "none")}
    assert seeds["baseline"] == seeds["none"] == [1, 2, 3, 4]
    assert len(seeds["strong"]) < 4
    assert "to run" not in printed, "the last submit had nothing to do"
