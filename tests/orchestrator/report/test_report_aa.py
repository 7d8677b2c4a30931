"""The A/A check: the baseline against itself with other seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablatrix.orchestrator.report import document, figures, notes, wording
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.record import record_of
from tests.support.reports import analyse_folder
from tests.support.studies import FEATURES, Plan, change_record, write_study

CELLS = {"baseline": [], "swiglu": ["swiglu"], "rope": ["rope"], "aa": []}
TWO = {name: FEATURES[name] for name in ("swiglu", "rope")}


def analyzed(folder: Path, values: dict[str, list[float]] | None = None, **plan: object) -> Analysis:
    """Return the analysis of a study with the check. values: final ones of a cell, by seed, in place of drawn ones."""
    made = Plan(features=TWO, cells=CELLS, **plan)  # type: ignore[arg-type]
    states = write_study(folder, made)
    for cell, each in (values or {}).items():
        for seed, value in enumerate(each, start=1):
            (path,) = folder.glob(f"{cell}-seed{seed}-*/summary.json")
            change_record(path, val_nll=value, final_loss=value)
    return analyse_folder(folder, states)


BASE, AGAIN = [3.01, 3.03, 2.98], [3.02, 2.97, 3.00]


def test_the_check_is_the_unpaired_t_test_of_the_two(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, {"baseline": BASE, "aa": AGAIN})
    found = analysis.aa
    assert found is not None and found.effect is not None
    assert found.seeds == (10001, 10002, 10003)
    theirs = stats.ttest_ind(AGAIN, BASE)
    low, high = theirs.confidence_interval(0.95)
    assert (found.effect.low, found.effect.high, found.effect.p) == pytest.approx((low, high, theirs.pvalue), rel=1e-9)
    assert (found.verdict, found.failed) == ("inconclusive", False)
    assert wording.aa_sentence(analysis).startswith(
        "A/A check passed: the baseline with seeds 10001, 10002 and 10003 differs from itself by −0.010 nats (95% "
    )


def test_the_check_is_no_cell_of_the_comparison(tmp_path: Path) -> None:
    with_check = analyzed(tmp_path / "with", {"baseline": BASE, "aa": AGAIN}, effects={"rope": -0.2})
    assert list(with_check.cells) == ["baseline", "swiglu", "rope"]
    assert with_check.family == 2
    assert len(with_check.study.runs) == 12
    assert record_of(with_check)["aa"]["verdict"] == "inconclusive"
    sections = {s.id: s for s in document.compose(with_check, figures.build_figures(with_check, ""), [])}
    assert sections["aa"].blocks[0] == wording.aa_sentence(with_check)
    assert not any("A/A" in note for note in notes.notes(with_check))
    assert "3 cells with 3 seeds (1, 2, 3), and the baseline again with 3 seeds (10001, 10002, 10003)" in str(
        record_of(with_check)["methods"]
    )


def test_a_check_that_fails_is_the_first_warning(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, {"baseline": BASE, "aa": [3.41, 3.43, 3.38]})
    assert analysis.aa is not None and analysis.aa.failed
    assert notes.notes(analysis)[0].startswith("A/A check failed: the baseline with seeds 10001, 10002 and 10003")


def test_a_seed_that_changes_nothing_fails_the_check(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, {"baseline": BASE, "aa": BASE})
    assert analysis.aa is not None and analysis.aa.verdict == "identical"
    assert "so the seed does not reach the trainer" in notes.notes(analysis)[0]


def test_a_check_without_runs_is_open(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, {"baseline": BASE}, fates={("aa", s): "planned" for s in (1, 2, 3)})
    assert analysis.aa is not None and analysis.aa.effect is None and not analysis.aa.failed
    assert "cannot be compared, with 0 of 3 runs usable" in wording.aa_sentence(analysis)


def test_the_check_fails_in_one_study_of_twenty_by_chance() -> None:
    """Also where the seed shifts all cells alike, and the two groups have different seeds."""
    rng, studies = np.random.default_rng(2), 1500
    failed = 0
    for _ in range(studies):
        base, again = (
            dict(enumerate((3 + rng.normal(0, 0.05, 3) + rng.normal(0, 0.02, 3)).tolist(), s)) for s in (1, 101)
        )
        p = compare({"baseline": base, "aa": again}, "baseline").effects["aa"].p_joint
        failed += p is not None and p <= 0.05
    assert failed / studies == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / studies) ** 0.5)
