"""The order in which runs are queued: seed by seed, cells shuffled."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store.study_dir import StudyRun
from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.submit import selection

CELLS = ("baseline", "swiglu", "rope", "rmsnorm", "warmup")
RUNS = [StudyRun(f"{cell}-seed{seed}", cell, seed, folder=Path(cell)) for cell in CELLS for seed in range(1, 21)]


def ordered(runs: list[StudyRun], study: str = "study") -> list[StudyRun]:
    return in_queue_order(runs, study, lambda run: run)


def test_a_study_stopped_anywhere_has_at_most_one_run_more_of_a_cell_than_of_another() -> None:
    counts = Counter(dict.fromkeys(CELLS, 0))
    for run in ordered(RUNS):
        counts[run.cell] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == len(RUNS)


def test_every_cell_is_early_in_some_seeds_and_late_in_others() -> None:
    places: dict[str, list[int]] = {cell: [] for cell in CELLS}
    for place, run in enumerate(ordered(RUNS)):
        places[run.cell].append(place % len(CELLS))
    assert all(min(found) == 0 and max(found) == len(CELLS) - 1 for found in places.values())


def test_the_order_is_the_same_whatever_is_queued_and_another_for_another_study() -> None:
    whole = ordered(RUNS)
    assert ordered(list(reversed(RUNS))) == whole
    for left_out in combinations(CELLS, 2):
        some = [run for run in RUNS if run.cell not in left_out]
        assert ordered(some) == [run for run in whole if run in some]
    assert ordered(RUNS, "another") != whole


def test_a_submit_queues_in_this_order() -> None:
    chosen = selection.select([RunState(run) for run in RUNS], study="study").chosen
    assert [state.run for state in chosen] == ordered(RUNS)
