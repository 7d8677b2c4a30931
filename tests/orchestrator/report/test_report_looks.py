"""Studies with planned looks: when a look ends, which cells stop, what goes on, and what the report says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.report import looks
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.collect import Study, read_study
from ablatrix.orchestrator.report.decisions import Verdict
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
    record["plans"] = [{"time": 1.0, "seeds": list(EIGHT), "cells": cells, "looks": LOOKS}]
    record["margins"] = [[1.0, margin]]
    path.write_text(json.dumps(record))
    return read_study(folder, states)


def later(found: Study) -> dict[str, str]:
    """Return run without its hash -> why it is not queued, of the later looks."""
    return {name.rpartition("-")[0]: why for name, why in looks.find_stages(found).later.items()}


def test_nothing_is_decided_while_a_run_of_the_first_look_is_missing(tmp_path: Path) -> None:
    found = study(tmp_path, 3, fates={("rope", 2): "running"})
    assert set(later(found).values()) == {"waits for look 1 of 3 to end", "waits for look 2 of 3 to end"}
    analysis = looks.analyse(found)
    assert analysis.progress is not None and analysis.progress.ended == 0
    assert {cell.verdict for cell in analysis.compared} == {Verdict.NO_CLAIM}
    assert len(analysis.study.runs) == 12


def test_what_the_first_look_decides_stops_and_the_rest_goes_on_with_the_baseline(tmp_path: Path) -> None:
    found = study(tmp_path, 3)
    analysis = looks.analyse(found)
    assert analysis.progress is not None
    assert (analysis.progress.ended, dict(analysis.progress.stopped)) == (1, {"rope": 1})
    assert analysis.progress.going_on == ("swiglu", "rmsnorm")
    due = {name for name, why in later(found).items() if not why}
    assert due == {f"{cell}-seed{seed}" for cell in ("baseline", "swiglu", "rmsnorm") for seed in (4, 5)}
    assert later(found)["rope-seed4"] == "not needed: its cell has stopped by look 1"
    assert later(found)["swiglu-seed6"] == "waits for look 2 of 3 to end"


def test_the_interval_is_that_of_the_look_at_which_the_cell_stopped(tmp_path: Path) -> None:
    early = looks.analyse(study(tmp_path / "early", 3))
    after = looks.analyse(study(tmp_path / "after", 8, fates={("rope", seed): "planned" for seed in (4, 5, 6, 7, 8)}))
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
    rope = looks.analyse(found).cells["rope"]
    assert rope.effect is not None and rope.effect.seeds == (1, 2, 3)


def test_a_failed_run_does_not_block_its_look(tmp_path: Path) -> None:
    analysis = looks.analyse(study(tmp_path, 3, fates={("rope", 2): "failed", ("baseline", 3): "lost"}))
    assert analysis.progress is not None and analysis.progress.ended == 1
    assert analysis.cells["rope"].effect is not None and analysis.cells["rope"].effect.n == 2


def test_a_cell_without_a_result_stops(tmp_path: Path) -> None:
    found = study(tmp_path, 3, fates={("rmsnorm", seed): "failed" for seed in (1, 2, 3)})
    analysis = looks.analyse(found)
    assert analysis.progress is not None and analysis.progress.stopped["rmsnorm"] == 1
    assert analysis.cells["rmsnorm"].verdict is Verdict.NO_RESULT


def test_a_study_of_which_every_run_failed_does_not_go_on(tmp_path: Path) -> None:
    cells = ["baseline", *CELLS]
    found = study(tmp_path, 3, fates={(cell, seed): "failed" for cell in cells for seed in (1, 2, 3)})
    assert not looks.find_stages(found).due
    assert not looks.find_stages(found).waiting


def test_a_margin_lets_cells_without_effect_stop(tmp_path: Path) -> None:
    found = study(tmp_path, 5, effects={"rope": -0.4}, margin=0.2)
    analysis = looks.analyse(found)
    assert analysis.cells["rmsnorm"].verdict is Verdict.NO_EFFECT
    assert analysis.progress is not None and analysis.progress.finished
    assert set(later(found).values()) == {
        "not needed: its cell has stopped by look 1",
        "not needed: every cell has stopped by look 1",
    }


@pytest.mark.parametrize("done", [3, 5])
def test_looking_twice_gives_the_same(tmp_path: Path, done: int) -> None:
    found = study(tmp_path, done)
    assert looks.find_stages(found) == looks.find_stages(read_study(tmp_path, {r.id: r.state for r in found.runs}))


def test_status_says_what_stopped_and_what_goes_on(tmp_path: Path) -> None:
    assert looks.find_stages(study(tmp_path, 3)).lines == [
        "look 1 of 3 has ended (error rate spent: 0.01 of 0.05): rope stopped at look 1 (helps); swiglu and rmsnorm go "
        "on with the baseline"
    ]
