"""Studies with planned looks: when a look ends, which cells stop, what goes on, and what the report says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from ablatrix.orchestrator.report import looks, methods, sequential, verdicts, wording
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.collect import Study, read_study
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.record import record_of
from ablatrix.orchestrator.report.statistics import Effect
from ablatrix.orchestrator.study.looks import Looks
from tests.support.studies import FEATURES, Plan, write_study

EIGHT = tuple(range(1, 9))
CELLS = {name: FEATURES[name] for name in ("swiglu", "rmsnorm", "rope")}
LOOKS = {"seeds": [3, 5, 8], "alpha": [0.01, 0.015, 0.025]}
EFFECTS = {"rope": -0.4, "swiglu": -0.03}  # at a noise of 0.02: decided at the first look, and at a later one


def study(
    folder: Path,
    done: int,
    effects: Mapping[str, float] = EFFECTS,
    fates: Mapping[tuple[str, int], str] | None = None,
    margin: float | None = None,
    futility: float = 0.0,
) -> Study:
    """Return a study of which the first seeds are done and the others planned."""
    cells = ["baseline", *CELLS]
    later = {(cell, seed): "planned" for cell in cells for seed in EIGHT if seed > done}
    plan = Plan(
        seeds=EIGHT,
        features=CELLS,
        cells={"baseline": (), **{name: (name,) for name in CELLS}},
        effects=dict(effects),
        fates={**later, **(fates or {})},
        noise=0.02,
    )
    states = write_study(folder, plan)
    path = folder / "study.json"
    record: dict[str, Any] = json.loads(path.read_text())
    record["plans"] = [{"time": 1.0, "seeds": list(EIGHT), "cells": cells, "looks": {**LOOKS, "futility": futility}}]
    record["margins"] = [[1.0, margin]]
    path.write_text(json.dumps(record))
    return read_study(folder, states)


def later(found: Study) -> dict[str, str]:
    """Return run without its hash -> why it is not queued, of the later looks."""
    return {name.rpartition("-")[0]: why for name, why in looks.find_stages(found).later.items()}


def test_nothing_is_decided_while_a_run_of_the_first_look_is_missing(tmp_path: Path) -> None:
    found = study(tmp_path, 3, fates={("rope", 2): "running"})
    assert set(later(found).values()) == {"waits for look 1 of 3 to end", "waits for look 2 of 3 to end"}
    analysis = looks.analyze(found)
    assert analysis.progress is not None and analysis.progress.ended == 0
    assert {cell.verdict for cell in analysis.compared} == {Verdict.NO_CLAIM}
    assert len(analysis.study.runs) == 12


def test_what_the_first_look_decides_stops_and_the_rest_goes_on_with_the_baseline(tmp_path: Path) -> None:
    found = study(tmp_path, 3)
    analysis = looks.analyze(found)
    assert analysis.progress is not None
    assert (analysis.progress.ended, dict(analysis.progress.stopped)) == (1, {"rope": 1})
    assert analysis.progress.going_on == ("swiglu", "rmsnorm")
    due = {name for name, why in later(found).items() if not why}
    assert due == {f"{cell}-seed{seed}" for cell in ("baseline", "swiglu", "rmsnorm") for seed in (4, 5)}
    assert later(found)["rope-seed4"] == "not needed: its cell has stopped by look 1"
    assert later(found)["swiglu-seed6"] == "waits for look 2 of 3 to end"


def test_the_interval_is_that_of_the_look_at_which_the_cell_stopped(tmp_path: Path) -> None:
    early = looks.analyze(study(tmp_path / "early", 3))
    after = looks.analyze(study(tmp_path / "after", 8, fates={("rope", seed): "planned" for seed in (4, 5, 6, 7, 8)}))
    assert after.progress is not None and after.progress.finished
    assert after.cells["rope"].effect == early.cells["rope"].effect
    effect = after.cells["rope"].effect
    assert effect is not None and effect.alpha == 0.01 and effect.n == 3
    assert after.cells["rmsnorm"].verdict is Verdict.INCONCLUSIVE
    assert after.progress.stopped["rmsnorm"] == 3
    assert statement_is_one(after)


def statement_is_one(analysis: Analysis) -> bool:
    """True if every cell's verdict agrees with its own simultaneous interval."""
    return all(
        cell.verdict.decided == (cell.effect is not None and cell.effect.at_least is not None)
        for cell in analysis.compared
    )


def test_seeds_that_came_after_a_cell_stopped_do_not_count(tmp_path: Path) -> None:
    found = study(tmp_path, 5)
    rope = looks.analyze(found).cells["rope"]
    assert rope.effect is not None and rope.effect.seeds == (1, 2, 3)


def test_a_failed_run_does_not_block_its_look(tmp_path: Path) -> None:
    analysis = looks.analyze(study(tmp_path, 3, fates={("rope", 2): "failed", ("baseline", 3): "lost"}))
    assert analysis.progress is not None and analysis.progress.ended == 1
    assert analysis.cells["rope"].effect is not None and analysis.cells["rope"].effect.n == 2


def test_a_cell_without_a_result_stops(tmp_path: Path) -> None:
    found = study(tmp_path, 3, fates={("rmsnorm", seed): "failed" for seed in (1, 2, 3)})
    analysis = looks.analyze(found)
    assert analysis.progress is not None and analysis.progress.stopped["rmsnorm"] == 1
    assert analysis.cells["rmsnorm"].verdict is Verdict.NO_RESULT


def test_a_study_of_which_every_run_failed_does_not_go_on(tmp_path: Path) -> None:
    cells = ["baseline", *CELLS]
    found = study(tmp_path, 3, fates={(cell, seed): "failed" for cell in cells for seed in (1, 2, 3)})
    assert not looks.find_stages(found).due
    assert not looks.find_stages(found).waiting


def test_a_margin_lets_cells_without_effect_stop(tmp_path: Path) -> None:
    found = study(tmp_path, 5, effects={"rope": -0.4}, margin=0.2)
    analysis = looks.analyze(found)
    assert analysis.cells["rmsnorm"].verdict is Verdict.NO_EFFECT
    assert analysis.progress is not None and analysis.progress.finished
    assert set(later(found).values()) == {
        "not needed: its cell has stopped by look 1",
        "not needed: every cell has stopped by look 1",
    }


def test_a_cell_that_will_hardly_be_decided_stops_for_futility(tmp_path: Path) -> None:
    found = study(tmp_path, 3, effects={"rope": -0.4, "swiglu": -0.05, "rmsnorm": -0.02}, futility=0.1)
    analysis = looks.analyze(found)
    assert analysis.progress is not None
    assert (analysis.progress.futile, analysis.progress.going_on) == (("rmsnorm",), ("swiglu",))
    assert analysis.cells["rmsnorm"].verdict is Verdict.INCONCLUSIVE
    assert analysis.progress.describe("rmsnorm") == "stopped for futility at look 1 of 3"
    assert "rmsnorm stopped at look 1 (inconclusive, futility)" in looks.find_stages(found).lines[0]
    assert later(found)["rmsnorm-seed4"] == "not needed: its cell has stopped by look 1"
    assert "probability of being decided by the last look is under 0.1" in " ".join(methods.paragraphs(analysis))


def test_with_a_margin_no_cell_stops_for_futility(tmp_path: Path) -> None:
    progress = looks.analyze(study(tmp_path, 3, margin=0.001, futility=0.1)).progress
    assert progress is not None and (progress.futile, progress.going_on) == ((), ("swiglu", "rmsnorm"))


def test_conditional_power_is_the_share_of_studies_that_the_last_look_decides() -> None:
    seeds, error_rate, z, comparisons = (5, 10), 0.04, 1.5, 2
    random = np.random.default_rng(1)
    estimate = z / math.sqrt(seeds[0])  # of a noise of 1
    sums = z * math.sqrt(seeds[0]) + random.normal(estimate * 5, math.sqrt(5), size=40_000)
    decided = np.mean(sums / math.sqrt(seeds[1]) > norm.ppf(1 - error_rate / 2 / comparisons))
    effect = Effect(z, 5, "pooled").with_intervals(1.0, 1e9, 2.0, 0.1, 0.01)
    power = looks.conditional_power(effect, Looks(seeds, (0.01, error_rate), 0.1), 0, comparisons)
    assert power == pytest.approx(decided, abs=0.01)


def test_status_says_what_stopped_and_what_goes_on(tmp_path: Path) -> None:
    assert looks.find_stages(study(tmp_path, 3)).lines == [
        "look 1 of 3 has ended (error rate spent: 0.01 of 0.05): rope stopped at look 1 (helps); swiglu and rmsnorm go "
        "on with the baseline"
    ]


# ---- what the report says --------------------------------------------------------------------------------------------


def test_the_page_says_at_which_look_a_cell_stopped_and_what_is_spent(tmp_path: Path) -> None:
    found = looks.analyze(study(tmp_path, 3))
    rope = verdicts.sentence(found.cells["rope"], found)
    assert "simultaneous 99% interval" in rope and "stopped at look 1 of 3" in rope
    assert "goes on to look 2 of 3" in verdicts.sentence(found.cells["swiglu"], found)
    assert wording.headline(found).endswith("Look 1 of 3 has ended.")
    assert any("of which 0.01 of 0.05 is spent" in text for text in methods.paragraphs(found))
    record = record_of(found)
    assert record["looks"]["alpha_spent"] == 0.01 and record["looks"]["going_on"] == ["swiglu", "rmsnorm"]
    assert {cell["cell"]: cell["look"] for cell in record["cells"]}["rope"] == 1


def planned(seeds: int, finished: int = 0, cells: tuple[str, ...] = ("baseline", *CELLS)) -> dict[str, Any]:
    return {"time": 1.0, "seeds": list(range(1, seeds + 1)), "cells": list(cells), "looks": None, "finished": finished}


def grown(folder: Path, *plans: Mapping[str, Any]) -> Analysis:
    """Return the analysis of a study of five seeds that was submitted with these plans."""
    cells = {"baseline": (), **{name: (name,) for name in CELLS}}
    states = write_study(folder, Plan(seeds=(1, 2, 3, 4, 5), features=CELLS, cells=cells, effects=EFFECTS, noise=0.02))
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plans": list(plans)}))
    return looks.analyze(read_study(folder, states))


def test_seeds_added_after_results_are_an_unplanned_look(tmp_path: Path) -> None:
    found = grown(tmp_path, planned(3), planned(5, finished=12))
    growth, broken = list(sequential.describe_growth(found))
    assert growth == "Originally planned: 4 cells with seeds 1 to 3. Added later: seeds 4 to 5."
    assert "seeds were added after 12 runs had finished" in broken
    assert "e-values of 60 or more are valid at any time and decide rope" in broken
    assert "e-value" in verdicts.sentence(found.cells["rope"], found)


def test_seeds_added_before_any_result_are_no_look(tmp_path: Path) -> None:
    found = grown(tmp_path, planned(3), planned(5))
    assert len(list(sequential.describe_growth(found))) == 1
    assert "e-value" not in verdicts.sentence(found.cells["rope"], found)


def test_features_added_later_are_named(tmp_path: Path) -> None:
    [line] = sequential.describe_growth(
        grown(tmp_path, planned(5, cells=("baseline", "rope")), planned(5, finished=10))
    )
    assert line.endswith("Added later: cells swiglu and rmsnorm.")


def test_e_value_of_two_and_of_many_differences() -> None:
    """By hand: n = 2, differences 1 and 3: t^2 = 4, nu = 1, r = 1 / 9."""
    assert sequential.e_value([1.0, 3.0]) == pytest.approx((1 / 9) ** 0.5 * (1 + 4) / (1 + 4 / 9))
    assert sequential.e_value([0.5]) is None and sequential.e_value([0.5, 0.5]) is None


def test_e_values_hold_whenever_one_looks() -> None:
    """P(ever >= 20 | null) over 30 seeds is at most 0.05; .025 in 20,000 simulated series."""
    rng = np.random.default_rng(5)
    series = rng.normal(size=(2000, 30))
    ever = [any((sequential.e_value(row[:n]) or 0) >= 20 for n in range(2, 31)) for row in series.tolist()]
    assert np.mean(ever) <= 0.05
    shifted = [(sequential.e_value(row) or 0) >= 20 for row in (series[:200] + 1.5).tolist()]
    assert np.mean(shifted) > 0.95
