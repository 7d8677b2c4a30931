"""Time as a property of a cell: planted drift, busy hosts, two hosts, and a cell that is really slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.report import document, record, tables
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.trainer.rundir.step_time import lower_quartile
from tests.support.reports import analyse_plan
from tests.support.studies import Plan

CELLS = ("baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on")
SEEDS = (1, 2, 3, 4)


def words(analysis: Analysis) -> str:
    return str([*document.budgets(analysis), *document.costs(analysis)])


def test_a_cell_that_is_really_slower_is_slower_and_schedules_are_not(tmp_path: Path) -> None:
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS))
    assert analysis.times.withheld == ""
    assert analysis.times.ratio("swiglu") == pytest.approx(1.15, rel=1e-6)
    assert analysis.times.ratio("rope") == pytest.approx(1.0, rel=1e-6)
    assert set(analysis.times.controls) == {"warmup", "cosine"}
    assert all(ratio == pytest.approx(1.0, rel=1e-6) for ratio in analysis.times.controls.values())
    swiglu, rope = analysis.cells["swiglu"], analysis.cells["rope"]
    assert swiglu.equal_seconds and swiglu.effect and rope.equal_seconds and rope.effect
    assert swiglu.equal_seconds.mean > swiglu.effect.mean  # it has fewer steps in the baseline's time
    assert rope.equal_seconds.mean == pytest.approx(rope.effect.mean)
    assert "warmup 1.00" in words(analysis)
    assert "equal time" in words(analysis)


def test_a_machine_that_gets_busy_half_way_gives_no_time_at_all(tmp_path: Path) -> None:
    """In the study's own order: the second half of the cells, with all their seeds, took twice as long."""
    slow = {(cell, seed): 2.0 for cell in CELLS[4:] for seed in SEEDS}
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS, slow=slow))
    assert "computes what the baseline computes, but its steps took 2.00 times as long" in analysis.times.withheld
    for cell in analysis.compared:
        assert cell.equal_seconds is None
        assert cell.seconds_to is None
        assert cell.tokens_per_second is None
    assert analysis.times.withheld in words(analysis)
    assert not any(column in words(analysis) for column in ("equal time", "speed-up in time", "tokens/s", "step time"))
    printed = record.record_of(analysis)
    assert printed["time_withheld"] == analysis.times.withheld
    assert {(cell["seconds"], cell["step_time_ratio"]) for cell in printed["cells"]} == {(None, None)}
    assert printed["hours"]["cpu"] > 0  # what was spent is a fact all the same
    header, *rows = tables.comparison(analysis).splitlines()
    column = header.split(",").index("step_time_ratio")
    assert all(row.split(",")[column] == "" for row in rows)


def test_drift_from_seed_to_seed_within_a_cell_gives_no_time(tmp_path: Path) -> None:
    slow = {(cell, seed): 1 + 0.2 * (seed > 2) for cell in CELLS for seed in SEEDS}
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS, slow=slow))
    assert "seconds per step differ by" in analysis.times.withheld


def test_one_disturbed_run_of_a_cell_gives_no_time(tmp_path: Path) -> None:
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS, slow={("rope", 2): 1.5}))
    assert "between runs of rope" in analysis.times.withheld


def test_runs_on_two_hosts_are_compared_within_each(tmp_path: Path) -> None:
    """One host is 1.6 times as slow, and has more runs of swiglu than of the baseline."""
    hosts = {
        (cell, seed): "slow" if seed == 4 or (cell == "swiglu" and seed > 1) else "fast"
        for cell in CELLS
        for seed in SEEDS
    }
    slow = {run: 1.6 for run, host in hosts.items() if host == "slow"}
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS, hosts=hosts, slow=slow))
    assert analysis.times.withheld == ""
    assert analysis.times.ratio("swiglu") == pytest.approx(1.15, rel=0.05)
    assert analysis.times.ratio("rope") == pytest.approx(1.0, rel=1e-6)


def test_a_cell_on_hardware_without_a_baseline_has_no_time(tmp_path: Path) -> None:
    hosts = {(cell, seed): "other" if cell == "rope" else "usual" for cell in CELLS for seed in SEEDS}
    analysis = analyse_plan(tmp_path, Plan(seeds=SEEDS, hosts=hosts))
    assert analysis.times.apart == ("rope",)
    assert analysis.cells["rope"].equal_seconds is None
    assert analysis.cells["swiglu"].equal_seconds is not None
    assert "so no time: rope" in words(analysis)


def test_one_seed_without_a_control_says_nothing_about_time(tmp_path: Path) -> None:
    features = {"swiglu": {"model.swiglu": True}, "rope": {"model.rope": True}}
    analysis = analyse_plan(tmp_path, Plan(seeds=(1,), features=features))
    assert "no cell ran twice" in analysis.times.withheld


def test_only_the_undisturbed_steps_count() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(1, 2001)
    each = np.full(len(steps), 0.02) * rng.uniform(0.98, 1.02, len(steps))
    each[0] = 30.0  # compiles
    each[900:] *= 2.5  # the machine is busy from here on
    assert lower_quartile(steps.tolist(), np.cumsum(each).tolist()) == pytest.approx(0.02, rel=0.02)


def test_a_clock_that_is_looked_at_every_two_seconds_gives_the_same_speed() -> None:
    steps = np.arange(10, 6001, 10)
    seconds = np.ceil(steps * 0.031 / 2) * 2  # of a row: when it was first seen
    assert lower_quartile(steps.tolist(), seconds.tolist()) == pytest.approx(0.031, rel=0.05)


def test_a_run_without_a_clock_has_no_speed() -> None:
    assert lower_quartile([1, 10, 20], [float("nan")] * 3) is None
    assert lower_quartile([1], [0.5]) is None
    assert lower_quartile([], []) is None
