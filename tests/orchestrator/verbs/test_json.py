"""`--json` of every verb: JSON on stdout, and nothing else there; errors with their exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.rundir import run_files
from tests.conftest import Verb
from tests.support.plans import write_experiment
from tests.support.studies import FEATURES, Plan, write_study
from tests.support.workspace import Workspace

Ask = Callable[..., Any]


@pytest.fixture
def ask(verb: Verb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """ask(*words, code=0): what `ablatrix WORDS --json` prints, beside a study of two cells and two seeds."""
    monkeypatch.chdir(tmp_path)
    fates = {("rope", 2): "failed"}
    cells: dict[str, list[str]] = {"baseline": [], "rope": ["rope"]}
    write_study(Path("out/planted"), Plan(seeds=(1, 2), features={"rope": FEATURES["rope"]}, cells=cells, fates=fates))

    def ask(*words: object, code: int = 0) -> Any:
        ended, out, _ = verb(*words, "--json")
        assert ended == code
        return json.loads(out)

    return ask


def test_status(ask: Ask) -> None:
    found = ask("status", "planted")
    assert (found["study"], found["folder"], found["stages"]) == ("planted", "out/planted", [])
    assert [run["state"] for run in found["runs"]].count("done") == 3


def test_show_diff_and_logs(ask: Ask) -> None:
    (baseline,) = [run for run in ask("status")["runs"] if run["cell"] == "baseline" and run["seed"] == 1]
    shown = ask("show", baseline["id"])
    assert shown["state"] == "done" and shown["config"]["system.seed"] == 1
    assert run_files.LOSS in shown["files"]
    (rope,) = [run["id"] for run in ask("status")["runs"] if run["cell"] == "rope" and run["seed"] == 1]
    found = ask("diff", baseline["id"], rope)
    assert {"what": "model.rope", "first": "false", "second": "true"} in found["differences"]
    assert ask("diff", "baseline", "rope") == found  # two cells: the first seed of both
    assert ask("diff", "baseline", rope, code=2)["errors"][0].startswith("baseline matches more than one run")
    Path(baseline["folder"], run_files.JOB_OUT).write_text("one\ntwo\x1b[0m\n")
    assert ask("logs", baseline["id"], "-n", "1")["lines"] == ["two"]


def test_what_asks_needs_yes_and_says_what_it_did(ask: Ask) -> None:
    assert ask("cancel", "--all", code=2)["errors"] == ["cancel: --json cannot ask for confirmation; add --yes"]
    assert ask("cancel", "--all", "--yes") == {"study": "planted", "cancelled": [], "jobs": [], "no_longer_waiting": 0}
    run = next(Path("out/planted").glob("baseline-seed1-*"))
    Path(f"{run}.old-1").mkdir()
    (item,) = ask("clean")["items"]
    assert (item["removed"], item["why"]) == (False, "result that --rerun put aside")
    assert Path(item["path"]).exists()
    assert ask("clean", "--yes")["items"] == [{**item, "removed": True}]
    assert not Path(item["path"]).exists()


def test_plan_and_show_of_a_file(ask: Ask) -> None:
    file = str(write_experiment(Path(), "features: {rope: {model.rope: true}}\nbudget: 3\n"))
    found = ask("plan", file, "--launcher", "local")
    assert [run["cell"] for run in found["runs"]] == ["baseline", "rope"]
    assert (found["hours_unit"], found["budget"], found["runs"][0]["hours"]) == ("node-hours", 3, None)
    assert ask("show", file, "--run", "rope")["config"]["model.rope"] is True


def test_mistakes_are_listed(ask: Ask) -> None:
    file = str(write_experiment(Path(), "desing: []\nsedes: 2\n"))
    for verb in ("plan", "check", "submit"):
        found = ask(verb, file, code=2)
        assert found["exit_code"] == 2
        assert [error.partition(": unknown key")[0].rpartition(" ")[2] for error in found["errors"]] == [
            "desing",
            "sedes",
        ]
    assert "cannot be combined" in ask("status", "--watch", code=2)["errors"][0]
    assert "no study there" in ask("report", "nosuch", code=2)["errors"][0]


def test_a_study_is_run_judged_and_extended_without_reading_text(workspace: Workspace) -> None:
    """Two seeds give no verdict; the machine adds two where `report` says that nothing is decided."""

    def ask(*words: object) -> Any:
        return json.loads(workspace.run(*words, "--json").stdout)

    text = workspace.write_study(iters=20).read_text().split("  rmsnorm:")[0]
    study = workspace.folder / "study.yaml"
    study.write_text(text + "  broken: {trainer.learning_rate: 1e-7}\ndesign: [baseline, one_at_a_time]\n")
    only = ("--only", "baseline", "--only", "broken", "--launcher", "local")
    assert ask("check", study, "--launcher", "local")["runs"] == 3
    planned = ask("plan", study, "--launcher", "local")["runs"]
    first = [run["id"] for run in planned if run["cell"] in ("baseline", "broken")]
    submitted = ask("submit", study, *only)
    assert submitted["queued"] == first
    states = {run["id"]: run["state"] for run in ask("status", submitted["study"])["runs"]}
    assert {states[name] for name in first} == {"done"}
    (judged,) = ask("report", submitted["folder"])["studies"]
    undecided = [cell["cell"] for cell in judged["cells"] if cell["verdict"] in ("no claim", "inconclusive")]
    assert undecided == ["broken"]
    again = ask("submit", study, *only, "--set", "seeds=[1,2,3]")
    assert len(again["queued"]) == 4 and not set(again["queued"]) & set(first)
    (judged,) = ask("report", submitted["folder"])["studies"]
    assert {cell["cell"]: cell["verdict"] for cell in judged["cells"]}["broken"] == "hurts"
