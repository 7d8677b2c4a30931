"""Reports of synthetic studies: verdicts, files, every run accounted for."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from ablatrix.orchestrator.report import document, notes, tables
from ablatrix.orchestrator.report.build import Report, VerdictRow, build, verdict_rows
from ablatrix.orchestrator.report.pages import html as page_of
from ablatrix.orchestrator.report.wording import headline
from ablatrix.trainer.rundir.errors import RunError, UserError
from tests.support.reports import analyse_plan
from tests.support.studies import FEATURES, Plan, write_study

FILES = {
    "summary.csv",
    "comparison.csv",
    "comparison.tex",
    "report.md",
    "report.html",
    "loss_curves.png",
    "effects.png",
}


class Made:
    """A study read and judged, without the drawing."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.analysis = analyse_plan(folder, plan)
        self.rows = verdict_rows(self.analysis)
        self.headline = headline(self.analysis)
        self.notes = notes.notes(self.analysis)

        self.runs = list(csv.DictReader(io.StringIO(tables.summary(self.analysis))))
        self.cells = list(csv.DictReader(io.StringIO(tables.comparison(self.analysis))))


def row(report: Report | Made, cell: str) -> VerdictRow:
    return next(r for r in report.rows if r.cell == cell)


@pytest.mark.slow
def test_a_planted_effect_gets_the_right_sign(tmp_path: Path) -> None:
    plan = Plan(seeds=(1, 2, 3, 4, 5), effects={"swiglu": -0.2, "warmup": 0.3}, noise=0.01)
    report = build(tmp_path, write_study(tmp_path, plan))
    assert row(report, "swiglu").verdict == "helps"
    assert row(report, "warmup").verdict == "hurts"
    assert "lower than the baseline" in row(report, "swiglu").sentence
    assert "higher than the baseline" in row(report, "warmup").sentence
    assert row(report, "rmsnorm").verdict == "inconclusive"
    pattern = r"swiglu \(−0\.\d{3} nats\) helps\. warmup \(\+0\.\d{3} nats\) and all_on .* hurt\. rmsnorm"
    assert re.match(pattern, report.headline)
    first = (tmp_path / "report" / "report.md").read_text().splitlines()[2]
    assert first.replace("\\", "") == f"**{report.headline}**"
    assert {path.name for path in report.paths} >= FILES
    assert not list((tmp_path / "report").glob("*.pdf")), "only on demand"
    assert all(path.exists() for path in report.paths)


def test_one_seed_makes_no_claim(tmp_path: Path) -> None:
    report = Made(tmp_path, Plan(seeds=(1,), effects={"warmup": 0.5}))
    harmful = row(report, "warmup")
    assert harmful.verdict == "no claim"
    assert harmful.text.interval == harmful.text.p == "—"
    assert report.headline == "One seed only, so no conclusion can be drawn."
    assert harmful.text.verdict == "one seed only"
    assert "one seed only, so no conclusion can be drawn" in harmful.sentence
    assert "higher than the baseline" in harmful.sentence
    assert all(r["effect_low"] == "" and r["p"] == "" for r in report.cells)


def test_no_run_is_dropped_whatever_became_of_it(tmp_path: Path) -> None:
    fates = {
        ("swiglu", 2): "failed",
        ("rmsnorm", 1): "diverged",
        ("rope", 1): "risen",
        ("rope", 2): "risen",
        ("rope", 3): "diverged",
        ("warmup", 1): "planned",
        ("warmup", 2): "cancelled",
        ("warmup", 3): "lost",
        ("cosine", 3): "running",
    }
    report = Made(tmp_path, Plan(fates=fates))
    runs = report.runs
    assert len(runs) == 21
    assert {(r["cell"], r["seed"]): r["state"] for r in runs}["swiglu", "2"] == "failed"
    assert [r["run"] for r in runs if r["diverged"] == "yes"] == [
        r["run"]
        for r in runs
        if (r["cell"], r["seed"]) in {("rmsnorm", "1"), ("rope", "1"), ("rope", "2"), ("rope", "3")}
    ]
    assert row(report, "rope").verdict == "diverged"
    assert "3 of 3" in row(report, "rope").sentence
    assert row(report, "warmup").verdict == "no result"
    assert "1 lost" in row(report, "warmup").sentence
    assert "unstable: 1 of 3 runs diverged (baseline: 0 of 3" in row(report, "rmsnorm").sentence
    assert "1 of 3 runs without a result" in row(report, "swiglu").sentence
    sections = document.compose(report.analysis, [], report.notes)
    page = page_of("t", "l", "s", sections, {})
    assert "out of memory on node3" in page
    assert "4 runs diverged and are excluded from all means and intervals: " in page
    assert "more than 20% worse than its own first value" in page
    assert "ValueError: loss is nan" in page
    assert all(escape(r["run"]) in page for r in runs)


def test_settings_that_did_not_reach_the_trainer_are_no_result(tmp_path: Path) -> None:
    fates = {("swiglu", seed): "stripped" for seed in (1, 2, 3)}
    report = Made(tmp_path, Plan(fates=fates, effects={"swiglu": -0.2}))
    assert row(report, "swiglu").verdict == "no result"
    assert "3 with different settings" in row(report, "swiglu").sentence
    assert any("did not reach the trainer in swiglu" in note for note in report.notes)


def test_a_cell_identical_to_the_baseline_is_called_out(tmp_path: Path) -> None:
    plan = Plan(
        features={"nothing": {"trainer.weight_decay": 0.2}}, cells={"baseline": [], "nothing": ["nothing"]}, noise=0.0
    )
    report = Made(tmp_path, plan)
    assert row(report, "nothing").verdict == "identical"
    assert any("Bit-identical to the baseline" in note for note in report.notes)


def test_schedule_arms_are_distinguished_from_model_arms(tmp_path: Path) -> None:
    report = Made(tmp_path, Plan())
    assert any("warmup and cosine change the learning-rate schedule" in note for note in report.notes)
    kinds = {r["cell"]: r["kind"] for r in report.cells}
    assert kinds == {
        "baseline": "",
        "swiglu": "model",
        "rmsnorm": "model",
        "rope": "model",
        "warmup": "schedule",
        "cosine": "schedule",
        "all_on": "model and schedule",
    }


def test_cells_of_other_sizes_are_flagged(tmp_path: Path) -> None:
    wide = {"wide": {"model.n_embd": 96}, "swiglu": {"model.swiglu": True}}
    report = Made(tmp_path, Plan(features=wide, cells={"baseline": [], "wide": ["wide"], "swiglu": ["swiglu"]}))
    flags = {r["cell"]: r["flags"] for r in report.cells}
    assert "not parameter-matched" in flags["wide"]
    assert "not parameter-matched" not in flags["swiglu"]


def test_a_baseline_with_seeds_judges_single_runs_by_its_spread(tmp_path: Path) -> None:
    fates = {(cell, seed): "planned" for cell in ("swiglu", "warmup") for seed in (2, 3, 4, 5)}
    plan = Plan(
        seeds=(1, 2, 3, 4, 5),
        features={"swiglu": {"model.swiglu": True}, "warmup": {"trainer.warmup_steps": 20}},
        cells={"baseline": [], "swiglu": ["swiglu"], "warmup": ["warmup"]},
        effects={"warmup": 0.5},
        fates=fates,
    )
    report = Made(tmp_path, plan)
    assert row(report, "warmup").verdict == "hurts"
    assert "not paired" in row(report, "warmup").sentence
    assert row(report, "swiglu").verdict == "inconclusive"


def test_nothing_has_finished_yet(tmp_path: Path) -> None:
    plan = Plan(seeds=(1,))
    report = Made(tmp_path, replace(plan, fates={(c, 1): "planned" for c in ["baseline", *plan.features, "all_on"]}))
    assert {r.verdict for r in report.rows} == {"baseline", "no result"}


def test_a_failed_baseline_leaves_no_comparison(tmp_path: Path) -> None:
    report = Made(tmp_path, Plan(seeds=(1, 2), fates={("baseline", 1): "failed", ("baseline", 2): "failed"}))
    assert row(report, "swiglu").verdict == "no result"
    assert "baseline has no usable run" in row(report, "swiglu").sentence


def test_no_study_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study found"):
        build(tmp_path, {})


@pytest.mark.slow
def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=(1,), features={"swiglu": FEATURES["swiglu"]}))
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(RunError, match="cannot write the report to"):
        build(tmp_path, states)
