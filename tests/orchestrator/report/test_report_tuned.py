"""Reports of tuned studies: each cell at its best value, the effect at the baseline's, and which runs come next."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablatrix.orchestrator.report import collect, notes
from ablatrix.orchestrator.report.analysis import Analysis, analyze
from ablatrix.orchestrator.report.build import build
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.tuned import find_stages
from tests.support.tuned_studies import TUNE, write_tuned

BEST = {"baseline": 2e-3, "cosine": 3.4e-3}
CONFIRMED = ("baseline@0.002", "cosine@0.0034", "cosine@0.002")


def analyzed(folder: Path, states: dict[str, tuple[str, str]]) -> Analysis:
    return analyze(collect.read_study(folder, states))


def test_each_cell_is_compared_at_its_best_value(tmp_path: Path) -> None:
    found = analyzed(tmp_path, write_tuned(tmp_path, BEST, {"cosine": -0.02}, trained=CONFIRMED))
    assert list(found.cells) == ["baseline", "cosine"]
    cosine, tuned = found.cells["cosine"], found.tuned
    assert tuned is not None
    assert tuned.ended
    assert {name: arm.optimum.value for name, arm in tuned.arms.items() if arm.optimum} == BEST
    assert cosine.verdict is Verdict.HELPS
    assert cosine.effect is not None
    assert cosine.effect.mean == pytest.approx(-0.02, abs=0.006)
    assert cosine.changes == ("schedule",)
    assert {run.seed for run in cosine.runs} == {1, 2, 3}
    assert {run.seed for run in found.study.runs} == {1, 2, 3, *TUNE.seeds}


def test_the_verdict_at_the_baselines_value_is_another_one(tmp_path: Path) -> None:
    states = write_tuned(tmp_path, BEST, {"cosine": -0.02}, trained=CONFIRMED)
    found = analyzed(tmp_path, states)
    assert found.tuned is not None
    assert found.tuned.verdicts["cosine"] is Verdict.HURTS
    assert found.tuned.equal["cosine"].mean == pytest.approx(0.009, abs=0.006)
    (sentence,) = [note for note in notes.notes(found) if note.startswith("cosine: at")]
    assert sentence.startswith("cosine: at the baseline's best trainer.learning_rate (0.002) hurts (+0.0")
    assert "at its own best (0.0034) helps (−0.0" in sentence


@pytest.mark.slow
def test_the_report_has_the_sweep_in_every_format(tmp_path: Path) -> None:
    report = build(tmp_path, write_tuned(tmp_path, BEST, {"cosine": -0.02}, trained=CONFIRMED))
    assert report.headline.endswith("Each cell at its best trainer.learning_rate.")
    tuning = report.record["tuning"]
    assert [(cell["cell"], cell["best"]) for cell in tuning["cells"]] == list(BEST.items())
    assert tuning["cells"][1]["verdict_at_baselines_best"] == "hurts"
    assert "tuning.png" in {path.name for path in report.paths}
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "## Tuned arms" in markdown
    assert "| cosine | 0.0034 (edge) |" in markdown  # 0.004, the last value, has the best mean
    assert "2 cells with 3 seeds (1, 2, 3), tuned with other seeds, make 21 runs" in markdown


def test_tuning_runs_decide_nothing(tmp_path: Path) -> None:
    found = analyzed(tmp_path, write_tuned(tmp_path, BEST, {"cosine": -0.5}))
    assert found.cells["cosine"].verdict is Verdict.NO_RESULT
    assert found.cells["cosine"].effect is None


def test_an_optimum_at_the_edge_is_a_warning(tmp_path: Path) -> None:
    found = analyzed(tmp_path, write_tuned(tmp_path, {**BEST, "cosine": 9e-3}, {}, trained=CONFIRMED))
    (note,) = [note for note in notes.notes(found) if "at the edge of the grid: cosine (0.004)" in note]
    assert note.endswith("so extend the grid, or add values in between if the next value diverged.")


def test_confirmation_waits_for_the_tuning_runs(tmp_path: Path) -> None:
    running = write_tuned(tmp_path / "a", BEST, {}, fates={("cosine@0.001", 1001): "running"})
    later = find_stages(collect.read_study(tmp_path / "a", running)).later
    assert len(later) == 2 * len(TUNE.candidates) * 3
    assert set(later.values()) == {"waits for the tuning runs to end"}


@pytest.mark.parametrize("fate", ["done", "failed", "lost", "cancelled", "diverged"])
def test_after_the_tuning_runs_the_best_values_are_due(tmp_path: Path, fate: str) -> None:
    ended = write_tuned(tmp_path, BEST, {}, fates={("cosine@0.001", 1001): fate})
    later = find_stages(collect.read_study(tmp_path, ended)).later
    due = {name.rpartition("-seed")[0] for name, why in later.items() if not why}
    assert due == {"baseline@0.002", "cosine@0.002", "cosine@0.0034"}
    assert {why for why in later.values() if why} == {"not needed: another value is best"}


def test_an_arm_without_a_usable_tuning_run_is_not_confirmed(tmp_path: Path) -> None:
    fates = {(f"cosine@{value:g}", seed): "failed" for value in TUNE.grid for seed in TUNE.seeds}
    states = write_tuned(tmp_path, BEST, {}, fates=fates)
    later = find_stages(collect.read_study(tmp_path, states)).later
    assert {name.partition("@")[0] for name, why in later.items() if not why} == {"baseline"}
    assert "No tuning run of cosine has a result yet." in notes.notes(analyzed(tmp_path, states))
