"""What a design can show: against scipy, against published values, in the plan, and from earlier results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from ablatrix.orchestrator.report.simultaneous import Joint
from ablatrix.orchestrator.status import earlier_results
from ablatrix.orchestrator.study import matrix, power
from ablatrix.orchestrator.study.design_comparison import compare_designs
from ablatrix.orchestrator.study.forecast import Forecast, forecast
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.plans import FIVE, expand

GOAL = "goal: {effect: 0.03}\n"


def forecast_of(folder: Path, text: str) -> tuple[list[Run], Forecast]:
    runs = expand(folder, text)
    experiment = load_experiment(folder / "e.yaml").experiment
    cells, seeds = {run.cell for run in runs}, len({run.seed for run in runs})
    found = forecast(
        experiment,
        runs[0].config,
        cells=cells,
        seeds=seeds,
        earlier=None,
        hours=dict.fromkeys(cells, 0.5),
        hours_unit="GPU-hours",
    )
    return runs, found


@pytest.mark.parametrize(("comparisons", "freedom"), [(2, 2), (6, 12), (29, 58)])
def test_the_report_judges_by_the_critical_value_of_the_forecast(comparisons: int, freedom: int) -> None:
    judged = Joint(((math.sqrt(0.5), comparisons),), freedom).critical(power.ALPHA)
    assert power.critical(comparisons, freedom) == pytest.approx(judged, rel=1e-5)


def test_critical_values_are_dunnetts() -> None:
    """Table of Dunnett (1964), Biometrics 20, 482, two-sided .05."""
    published = {(1, 10): 2.23, (2, 10): 2.57, (6, 12): 2.98, (6, 24): 2.76, (9, 20): 2.95}
    assert {key: round(power.critical(*key), 2) for key in published} == published


@pytest.mark.parametrize(("cells", "seeds"), [(2, 3), (2, 12), (7, 3), (7, 8), (30, 2)])
def test_power_is_that_of_the_noncentral_t(cells: int, seeds: int) -> None:
    freedom = (cells - 1) * (seeds - 1)
    limit = power.critical(cells - 1, freedom)
    for effect in (0.0, 0.02, 0.05):
        t = stats.nct(freedom, effect / (0.02 * math.sqrt(2 / seeds)))
        assert power.power(effect, 0.02, cells, seeds) == pytest.approx(t.sf(limit) + t.cdf(-limit), abs=2e-6)


@pytest.mark.parametrize(("cells", "seeds"), [(2, 2), (3, 2), (2, 3)])
def test_the_smallest_effect_of_few_runs_equals_quadrature(cells: int, seeds: int) -> None:
    freedom = (cells - 1) * (seeds - 1)
    smallest = power.smallest_effect(0.02, cells, seeds, alpha=0.01)
    assert smallest is not None
    shift, limit = smallest / (0.02 * math.sqrt(2 / seeds)), power.critical(cells - 1, freedom, 0.01)
    limit /= math.sqrt(freedom)
    chi = stats.chi(freedom)

    def shown(x: float) -> float:
        return float(chi.pdf(x) * (stats.norm.cdf(shift - limit * x) + stats.norm.cdf(-shift - limit * x)))

    assert quad(shown, 0, 10, points=[shift / limit], limit=200)[0] == pytest.approx(0.8, abs=1e-5)


def test_the_smallest_effect_and_the_seeds_needed_have_the_power_that_they_promise() -> None:
    smallest = power.smallest_effect(0.0196, 7, 5)
    assert smallest is not None
    assert power.power(smallest, 0.0196, 7, 5) == pytest.approx(0.8, abs=1e-6)
    needed = power.seeds_needed(0.03, 0.02, 7)
    assert needed is not None
    assert power.power(0.03, 0.02, 7, needed) >= 0.8 > power.power(0.03, 0.02, 7, needed - 1)
    assert power.seeds_needed(0.0001, 0.02, 7) is None
    assert power.smallest_effect(0.02, 7, 1) is None


@pytest.mark.parametrize(("effects", "freedom"), [(1, 9), (5, 15), (10, 22)])
def test_main_effects_are_judged_as_uncorrelated(effects: int, freedom: int) -> None:
    judged = Joint(((0.0, effects),), freedom).critical(power.ALPHA)
    assert power.critical_of_main_effects(effects, freedom) == pytest.approx(judged, rel=1e-5)
    assert power.critical_of_main_effects(1, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)


@pytest.mark.parametrize("design", ["fractional", "factorial"])
def test_the_forecast_of_a_design_that_is_read_by_main_effects_is_theirs(tmp_path: Path, design: str) -> None:
    runs, found = forecast_of(tmp_path, FIVE + f"design: [{design}]\nseeds: 2\nnoise: 0.0196\n")
    cells = len({run.cell for run in runs})
    error = 0.0196 * 2 / math.sqrt(2 * cells)
    limit = power.critical_of_main_effects(5, cells - 1)
    t = stats.nct(cells - 1, found.smallest / error)
    assert t.sf(limit) + t.cdf(-limit) == pytest.approx(0.8, abs=1e-5)
    assert found.lines() == [found.lines()[0]]
    assert f"{cells} cells x 2 seeds can show main effects over about" in found.lines()[0]


def test_the_aa_check_costs_runs_and_is_not_compared(tmp_path: Path) -> None:
    text = FIVE + GOAL + "noise: 0.02\n"
    runs, found = forecast_of(tmp_path, text + "design: [baseline, one_at_a_time, all_on, aa]\n")
    assert (len(runs), found.cells, found.needed) == (88, 7, 11)
    assert found.lines()[-1].endswith("needs 11 seeds: 88 runs, about 44 GPU-hours")


def test_a_goal_needs_fewer_seeds_of_a_fraction(tmp_path: Path) -> None:
    text = FIVE + GOAL + "noise: 0.02\n"
    alone, fraction = expand(tmp_path, text), expand(tmp_path, text + "design: [fractional]\n")
    assert (len(alone), len(fraction)) == (77, 32)


def test_designs_are_compared_at_the_seeds_and_at_the_runs_of_the_study() -> None:
    found = {c.design: c for c in compare_designs([1] * 5, seeds=5, runs=35, hours_per_run=0.5)}
    alone, full, half = (found[d] for d in ("baseline, one_at_a_time", "factorial", "{fractional: 5}"))
    assert (alone.cells, alone.runs, alone.hours, alone.equal_seeds) == (6, 30, 15.0, 5)
    assert 0.0196 * alone.error == pytest.approx(0.0124, abs=5e-5)
    assert (half.cells, half.equal_seeds) == (16, 2)
    assert half.equal_error is not None
    assert 0.0196 * half.equal_error == pytest.approx(0.0069, abs=5e-5)
    assert full.equal_error is None
    assert full.error == pytest.approx(2 / math.sqrt(32 * 5))
    assert set(found) == {
        *(c.design for c in (alone, full, half)),
        "leave_one_out",
        "{fractional: 3}",
        "plackett_burman",
    }
    assert [c.design for c in compare_designs([1, 2], 3, 12, None)] == ["baseline, one_at_a_time", "factorial"]
    assert compare_designs([1] * 12, 3, 39, None)[2].design == "{fractional: 4}"


def test_a_plan_says_what_it_can_show_and_what_its_goal_costs(tmp_path: Path) -> None:
    _, found = forecast_of(tmp_path, FIVE + "seeds: 5\nnoise: 0.02\n" + GOAL)
    first, second = found.lines()
    assert first.startswith("7 cells x 5 seeds can show effects over about 0.046 nats with 80% power")
    assert "`noise:` of the file" in first
    assert second == "goal: an effect of 0.03 nats with 80% power needs 11 seeds: 77 runs, about 38.5 GPU-hours"
    assert json.loads(json.dumps(found.as_record()))["goal"] == {"effect": 0.03, "seeds": 11, "runs": 77, "hours": 38.5}


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_cannot_decide_and_that_is_the_last_line(tmp_path: Path, seeds: int) -> None:
    _, found = forecast_of(tmp_path, FIVE + f"seeds: {seeds}\n")
    assert "cannot decide between cells; take at least 3 seeds" in found.lines()[-1]


def test_a_goal_chooses_the_seeds_unless_they_are_given(tmp_path: Path) -> None:
    runs, _ = forecast_of(tmp_path, FIVE + GOAL + "noise: 0.02\n")
    assert sorted({run.seed for run in runs}) == list(range(1, 12))
    assert {run.seed for run in expand(tmp_path, FIVE + GOAL + "seeds: [7, 9]\n")} == {7, 9}
    assert len(expand(tmp_path, FIVE + "goal: {effect: 5.0}\n")) == 7 * 3  # never fewer than can decide
    with pytest.raises(ConfigError, match=r"e\.yaml:\d+: goal: an effect of 1e-05 needs more than 200 seeds"):
        expand(tmp_path, FIVE + "goal: {effect: 0.00001}\n")


def test_a_command_needs_noise_for_its_goal(tmp_path: Path) -> None:
    text = (
        "name: c\ncommand: [python, train.py, '--seed={seed}', '{flags}']\nmetrics: {csv: log.csv}\n"
        "base: {lr: 0.1}\nfeatures: {high: {lr: 0.2}}\ndesign: [baseline, one_at_a_time]\ngoal: {effect: 0.03}\n"
    )
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="noise of this measure is not known; give `noise:`"):
        matrix.runs(load_experiment(path), lambda config: (4096, 4095))
    path.write_text(text + "noise: 0.02\n")
    assert len(matrix.runs(load_experiment(path), lambda config: (4096, 4095))) > 6


def test_noise_and_hours_come_from_finished_runs_of_the_same_baseline(tmp_path: Path) -> None:
    runs = expand(tmp_path, FIVE + "seeds: 4\n")
    y = np.random.default_rng(3).normal(3, 0.02, (7, 4))
    other = tmp_path / "out" / "earlier"
    cells = list(dict.fromkeys(run.cell for run in runs))
    entries = [{"id": run.id, "cell": run.cell, "seed": run.seed} for run in runs]
    for run in runs:
        folder = other / run.id
        folder.mkdir(parents=True)
        value = y[cells.index(run.cell), run.seed - 1]
        (folder / "summary.json").write_text(json.dumps({"iters": 10, "val_nll": value, "diverged": False}))
        times = [("started", 1000.0), ("heartbeat", 2800.0)] + ([("finished", 4600.0)] if run.cell != "rope" else [])
        events = [{"event": name, "time": time, "host": "a", "pid": 1} for name, time in times]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    record = {"name": "earlier", "file": "e.yaml", "created": 0.0, "features": {}, "runs": entries}
    (other / "study.json").write_text(json.dumps(record))
    found = earlier_results.find(tmp_path / "out" / "new", runs)
    rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    sigma = math.sqrt((rest**2).sum() / 18)
    assert found.noise is not None
    assert found.noise.sigma == pytest.approx(sigma * math.sqrt(18 / stats.chi2.ppf(0.2, 18)), rel=1e-3)
    assert "earlier" in found.noise.source
    assert found.hours["baseline"] == pytest.approx(1.0)
    accuracy = {"iters": 10, "measure": "accuracy", "final_value": 0.31}  # compared by another column then
    (other / runs[5].id / "summary.json").write_text(json.dumps(accuracy))
    fewer = {c: {r.seed: y[i, r.seed - 1] for r in runs if r.cell == c and r != runs[5]} for i, c in enumerate(cells)}
    left, freedom = earlier_results.residual_sd(fewer)
    noise = earlier_results.find(tmp_path / "out" / "new", runs).noise
    assert noise and freedom == 17
    assert noise.sigma == pytest.approx(left * math.sqrt(17 / stats.chi2.ppf(0.2, 17)), rel=1e-3)
    changed = expand(tmp_path, FIVE + "seeds: 4\n", ("trainer.max_iters=77",))
    assert earlier_results.find(tmp_path / "out" / "new", changed) == earlier_results.EarlierResults()


@pytest.mark.parametrize("ids", ["tuning", "aa"])
def test_runs_that_tune_and_the_aa_check_are_no_noise(tmp_path: Path, ids: str) -> None:
    runs = expand(tmp_path, FIVE + "seeds: 4\n")
    other = tmp_path / "out" / "earlier"
    entries: list[dict[str, object]] = [{"id": run.id, "cell": run.cell, "seed": run.seed} for run in runs]
    record = {"name": "earlier", "file": "e.yaml", "created": 0.0, "features": {}, "runs": entries}
    values = dict(zip((run.id for run in runs), np.random.default_rng(3).normal(3, 0.02, len(runs)), strict=True))

    def noise() -> float:
        for name, value in values.items():
            (other / name).mkdir(parents=True, exist_ok=True)
            (other / name / "summary.json").write_text(json.dumps({"iters": 10, "val_nll": value}))
        (other / "study.json").write_text(json.dumps(record))
        found = earlier_results.find(tmp_path / "out" / "new", runs).noise
        assert found is not None
        return found.sigma

    alone = noise()
    cells, seeds = (("baseline@9", "rope@9"), (1001, 1002)) if ids == "tuning" else (("aa",), (1, 2, 3, 4))
    more = [{"id": f"{cell}-seed{seed}-{seed:08x}", "cell": cell, "seed": seed} for cell in cells for seed in seeds]
    entries += more
    values |= {str(run["id"]): value for run, value in zip(more, (2.5, 3.5, 3.5, 2.5), strict=True)}
    if ids == "tuning":
        record["tune"] = {"setting": "trainer.learning_rate", "grid": [1, 3, 9], "seeds": list(seeds)}
    assert noise() == alone


def test_the_residual_of_unbalanced_results_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(5)
    values = {f"c{i}": {s: float(rng.normal(i, 1)) for s in range(5) if (i + s) % 4} for i in range(4)}
    keys = [(c, s) for c, found in values.items() for s in found]
    y = np.array([values[c][s] for c, s in keys])
    x = np.array([[c == f"c{i}" for i in range(4)] + [s == j for j in range(5)] for c, s in keys], dtype=float)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    sd, freedom = earlier_results.residual_sd(values)
    assert freedom == len(y) - np.linalg.matrix_rank(x)
    assert sd == pytest.approx(math.sqrt(rest @ rest / freedom), rel=1e-9)
    assert earlier_results.residual_sd({"a": {1: 3.0}})[1] == 0
    assert earlier_results.residual_sd({})[1] == 0
