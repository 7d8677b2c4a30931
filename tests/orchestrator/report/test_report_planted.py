"""Studies in which something went wrong: what the report concludes from the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.orchestrator.report import forests, methods, notes, sequential, verdicts, wording
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.decisions import Verdict, fisher_p
from tests.support.reports import analyse_folder, write_html
from tests.support.studies import FEATURES, Plan, change_record, write_study

FIVE = (1, 2, 3, 4, 5)
TWO = {name: FEATURES[name] for name in ("swiglu", "rope")}
THREE = {name: FEATURES[name] for name in ("swiglu", "rmsnorm", "rope")}


def shift(folder: Path, run: str, by: float) -> None:
    """Add to the final value of a run."""
    path = next(folder.glob(f"{run}-*")) / "summary.json"
    change_record(path, val_nll=json.loads(path.read_text())["val_nll"] + by)


def analyzed(folder: Path, plan: Plan, study: Mapping[str, Any] | None = None) -> Analysis:
    states = write_study(folder, plan)
    change_record(folder / "study.json", **(study or {}))
    return analyse_folder(folder, states)


def test_a_cell_that_mostly_diverged_is_unstable(tmp_path: Path) -> None:
    fates = {("swiglu", seed): "diverged" for seed in (1, 2, 4, 5)}
    analysis = analyzed(tmp_path, Plan(seeds=FIVE, effects={"swiglu": -0.3}, fates=fates))
    cell = analysis.cells["swiglu"]
    assert cell.verdict is Verdict.UNSTABLE
    assert cell.effect is not None and cell.effect.n == 1
    said = verdicts.sentence(cell, analysis)
    assert "4 of 5 runs diverged (baseline: 0 of 5, Fisher's exact p = 0.048)" in said
    assert "among the runs that survived" in said and "1 of 5 runs" in said
    assert analysis.cells["rope"].verdict is Verdict.INCONCLUSIVE


def test_long_names_that_differ_in_their_middle_stay_distinct(tmp_path: Path) -> None:
    first, second = (f"positions_of_every_layer_{name}_with_the_usual_initialization" for name in ("rope", "norm"))
    features = {first: FEATURES["rope"], second: FEATURES["rmsnorm"]}
    analysis = analyzed(tmp_path, Plan(features=features, seeds=FIVE, effects={first: -0.3}))
    shown, found = wording.shown_names(analysis), wording.headline(analysis)
    assert "layer_rope_with" in shown[first] and "layer_norm_with" in shown[second]
    assert shown[first] in found and shown[second] in found


def test_a_bound_that_decides_never_reads_as_0(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, Plan(features=TWO, seeds=FIVE, effects={"rope": -0.3}))
    cell = analysis.cells["rope"]
    assert cell.verdict is Verdict.HELPS and cell.effect is not None and analysis.decimals == 3
    close = replace(cell, effect=replace(cell.effect, joint_high=-0.00031))
    assert wording.cell_text(close, analysis).interval.endswith(" to −0.0003")
    assert verdicts.sentence(close, analysis).startswith("helps by at least 0.0003 nats: ")


def test_one_diverged_run_of_three_can_be_chance(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, Plan(features=TWO, fates={("swiglu", 2): "diverged"}))
    text = verdicts.sentence(analysis.cells["swiglu"], analysis)
    assert analysis.cells["swiglu"].verdict is Verdict.UNSTABLE
    assert "1 of 3 runs diverged (baseline: 0 of 3, Fisher's exact p = 1.000, too few to rule out chance)" in text


def test_fishers_test_equals_scipys() -> None:
    from scipy.stats import fisher_exact

    for table in ((4, 5, 0, 5), (1, 3, 0, 3), (2, 5, 1, 8), (0, 3, 0, 3)):
        lost, runs, base_lost, base_runs = table
        theirs = fisher_exact([[lost, runs - lost], [base_lost, base_runs - base_lost]]).pvalue
        assert fisher_p(*table) == pytest.approx(theirs, rel=1e-9)


def test_a_collapsed_seed_takes_no_other_verdict_away(tmp_path: Path) -> None:
    plan = Plan(seeds=FIVE, effects={"swiglu": -0.1})
    states = write_study(tmp_path, plan)
    shift(tmp_path, "rope-seed3", 0.6)
    analysis = analyse_folder(tmp_path, states)
    assert analysis.cells["swiglu"].verdict is Verdict.HELPS
    rope = analysis.cells["rope"]
    assert rope.verdict is Verdict.INCONCLUSIVE
    assert analysis.comparison.odd == ("rope",) and analysis.comparison.outliers == (("rope", 3),)
    assert rope.effect is not None and rope.effect.without_outliers is not None
    assert rope.effect.mean - rope.effect.without_outliers == pytest.approx(0.12, abs=0.01)
    assert "without the outlying seed 3" in verdicts.sentence(rope, analysis)
    found = notes.notes(analysis)
    assert any("Far noisier than the other cells (Cochran's test): rope" in note for note in found)
    assert any("Outlying final values, kept in all means: rope seed 3" in note for note in found)


def test_a_missing_run_does_not_bias_a_factorial(tmp_path: Path) -> None:
    sets = [list(c) for size in range(4) for c in combinations(THREE, size)]
    plan = Plan(
        features=THREE,
        cells={"+".join(s) or "baseline": s for s in sets},
        effects={"swiglu": -0.07},
        fates={("swiglu+rope", 1): "failed"},
        noise=1e-6,
        shared=0.05,
    )
    analysis = analyzed(tmp_path, plan)
    main = {c.name: c.effect.mean for c in analysis.main_effects if c.effect}
    assert main == pytest.approx({"swiglu": -0.07, "rmsnorm": 0.0, "rope": 0.0}, abs=1e-5)
    assert {c.verdict for c in analysis.compared} == {Verdict.NO_CLAIM}
    rope = analysis.cells["rope"]
    assert "not tested: the tests of this design are its main effects and pairs" in verdicts.sentence(rope, analysis)
    assert verdicts.word(rope, analysis) == "not tested"
    drawn = forests.effects(analysis, "")
    assert "Cells are described, not tested: main effects are tested first, then pairs" in drawn.caption


def stop_early(folder: Path, run: str, rows: int) -> None:
    """Cut a run after some rows, as early stopping does."""
    path = next(folder.glob(f"{run}-*"))
    lines = (path / "loss.csv").read_text().splitlines()[: rows + 1]
    (path / "loss.csv").write_text("\n".join(lines) + "\n")
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    change_record(
        path / "summary.json",
        iters=int(last["iter"]),
        tokens=int(float(last["tokens"])),
        val_nll=float(last["val_loss"]),
        stopped_early=True,
        loss_csv=None,
    )


def test_early_stopping_of_a_baseline_run_concerns_its_own_seed(tmp_path: Path) -> None:
    plan = Plan(seeds=FIVE, effects={"swiglu": -0.1, "rope": 0.08}, evaluations=20)
    whole = analyzed(tmp_path / "whole", plan)
    states = write_study(tmp_path / "cut", plan)
    stop_early(tmp_path / "cut", "baseline-seed2", 30)
    cut = analyse_folder(tmp_path / "cut", states)
    assert {n: c.verdict for n, c in cut.cells.items()} == {n: c.verdict for n, c in whole.cells.items()}
    cell, before = cut.cells["rope"], whole.cells["rope"]
    assert cell.read_off and not before.read_off
    moved = [seed for seed in FIVE if cell.at_budget[seed] != before.at_budget[seed]]
    assert moved == [2]
    assert cell.at_budget[2] > cell.values[2] + 0.05
    text, digits = wording.cell_text(cell, cut).value, cut.decimals
    assert text == f"{np.mean(list(cell.at_budget.values())):.{digits}f} ({cell.mean:.{digits}f})"
    assert wording.cell_text(before, whole).value == f"{before.mean:.{whole.decimals}f}"
    assert cell.effect and before.effect
    assert cell.effect.mean == pytest.approx(before.effect.mean, abs=0.002)
    usual, found = sequential.cell_e_value(before, whole), sequential.cell_e_value(cell, cut)
    assert usual and found and found > usual / 2  # at equal budgets too
    assert sequential.cell_e_value(replace(cell, incomparable="other contexts"), cut) is None


@pytest.mark.parametrize(("column", "higher", "verdict"), [("mse", False, "helps"), ("accuracy", True, "hurts")])
def test_other_measures_have_their_direction(tmp_path: Path, column: str, higher: bool, verdict: str) -> None:
    states = write_study(tmp_path, Plan(features=TWO, effects={"swiglu": -0.1}))
    measure = {"column": column, "name": column.upper(), "unit": "", "higher_is_better": higher}
    change_record(tmp_path / "study.json", measure=measure)
    for path in tmp_path.glob("*/summary.json"):
        change_record(path, measure=column, final_value=json.loads(path.read_text())["val_nll"])
    analysis = analyse_folder(tmp_path, states)
    assert analysis.cells["swiglu"].verdict == verdict
    assert column.upper() in verdicts.sentence(analysis.cells["swiglu"], analysis)


@pytest.mark.parametrize("seeds", [(1,), FIVE])
def test_effects_on_a_small_measure_do_not_read_as_0(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    states = write_study(tmp_path, Plan(features=TWO, seeds=seeds, effects={"swiglu": -0.1}))
    measure = {"column": "mse", "name": "MSE", "unit": "", "higher_is_better": False}
    change_record(tmp_path / "study.json", measure=measure)
    for path in tmp_path.glob("*/summary.json"):
        change_record(path, measure="mse", final_value=1e-9 * json.loads(path.read_text())["val_nll"])
    analysis = analyse_folder(tmp_path, states)
    text = wording.cell_text(analysis.cells["swiglu"], analysis)
    effect = analysis.cells["swiglu"].effect
    assert effect
    assert float(text.effect.replace("−", "-")) == pytest.approx(effect.mean, rel=0.05)
    assert float(text.value) == pytest.approx(3.1e-9, rel=0.1)


@pytest.mark.parametrize(("without", "said"), [((1, 2, 3), "no result: 3 finished"), ((2,), "1 of 3 runs finished")])
def test_a_run_without_the_measure_is_named(tmp_path: Path, without: tuple[int, ...], said: str) -> None:
    states = write_study(tmp_path, Plan(features=TWO, effects={"swiglu": -0.3}))
    for seed in without:
        path = next(tmp_path.glob(f"rope-seed{seed}-*")) / "summary.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "val_nll"}))
    analysis = analyse_folder(tmp_path, states)
    text = verdicts.sentence(analysis.cells["rope"], analysis)
    assert f"{said} without a final held-out NLL" in text
    assert "done" not in text
    assert analysis.cells["swiglu"].verdict is Verdict.HELPS


def test_cells_that_are_identical_to_each_other_are_named(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(effects={"swiglu": -0.1}))
    for seed in (1, 2, 3):
        one, other = (next(tmp_path.glob(f"{name}-seed{seed}-*")) for name in ("warmup", "cosine"))
        for name in ("loss.csv", "summary.json"):
            (other / name).write_bytes((one / name).read_bytes())
    named = [note for note in notes.notes(analyse_folder(tmp_path, states)) if "Bit-identical" in note]
    assert len(named) == 1 and named[0].startswith("Bit-identical to each other: warmup and cosine.")
    path = other / "loss.csv"  # an evaluation on the way tells them apart
    lines = path.read_text().splitlines()
    evaluated = next(i for i, line in enumerate(lines) if i and line.split(",")[lines[0].split(",").index("val_loss")])
    cells = lines[evaluated].split(",")
    cells[lines[0].split(",").index("val_loss")] = "3.5"
    path.write_text("\n".join([*lines[:evaluated], ",".join(cells), *lines[evaluated + 1 :]]) + "\n")
    assert not any("Bit-identical" in note for note in notes.notes(analyse_folder(tmp_path, states)))


def test_a_margin_decides_that_there_is_no_effect(tmp_path: Path) -> None:
    plan = Plan(seeds=FIVE, effects={"swiglu": -0.3}, noise=0.004)
    analysis = analyzed(tmp_path, plan, {"margins": [[1.0, 0.02]]})
    rope = analysis.cells["rope"]
    assert rope.verdict is Verdict.NO_EFFECT
    assert verdicts.word(rope, analysis) == "no effect larger than 0.02 nats"
    assert "no effect larger than 0.02 nats" in wording.headline(analysis)
    assert analysis.cells["swiglu"].verdict is Verdict.HELPS
    assert any("0.02 nats, the margin of the experiment file" in text for text in methods.paragraphs(analysis))
    assert not any("margin" in note for note in notes.notes(analysis))
    changed = analyzed(tmp_path / "later", plan, {"margins": [[1.0, 0.001], [2.0, 0.02]]})
    assert "The margin was set to 0.02 after the study had been submitted." in notes.notes(changed)


def test_values_over_other_contexts_get_no_verdict(tmp_path: Path) -> None:
    features = {"long": {"data.block_size": 32}, "swiglu": {"model.swiglu": True}}
    cells = {"baseline": [], "long": ["long"], "swiglu": ["swiglu"]}
    analysis = analyzed(tmp_path, Plan(features=features, cells=cells, effects={"long": -0.5}))
    cell = analysis.cells["long"]
    assert cell.verdict is Verdict.NO_CLAIM
    assert "over contexts of 32 tokens, the baseline's over 64" in verdicts.sentence(cell, analysis)
    assert any(note.startswith("No verdict for long") for note in notes.notes(analysis))


def test_rounded_values_decide_nothing_below_their_unit(tmp_path: Path) -> None:
    plan = Plan(seeds=FIVE, noise=0.0, shared=0.0, features=TWO, effects={"swiglu": -0.004})
    states = write_study(tmp_path, plan)
    for path in tmp_path.glob("*/summary.json"):
        change_record(path, val_nll=round(json.loads(path.read_text())["val_nll"], 2))
    analysis = analyse_folder(tmp_path, states)
    assert analysis.comparison.resolution == pytest.approx(0.01)
    assert not any(cell.verdict.decided for cell in analysis.compared)
    assert "The values are rounded to 0.01 nats" in " ".join(methods.paragraphs(analysis))


def test_what_a_cell_changes_is_named_by_its_settings(tmp_path: Path) -> None:
    features = {
        "lr": {"trainer.learning_rate": 1e-3},
        "decay": {"trainer.weight_decay": 0.2},
        "batch": {"trainer.batch_size": 16},
        "sgd": {"trainer.optimizer": "sgd", "trainer.momentum": 0.9},
        "dropout": {"model.resid_pdrop": 0.0},
        "both": {"trainer.warmup_steps": 5, "trainer.learning_rate": 2e-3},
    }
    analysis = analyzed(tmp_path, Plan(features=features, cells={"baseline": [], **{f: [f] for f in features}}))
    assert {c.name: c.kind for c in analysis.compared} == {
        "lr": "learning rate",
        "decay": "regularization",
        "batch": "batch",
        "sgd": "optimizer",
        "dropout": "regularization",
        "both": "learning rate and schedule",
    }
    assert "changes the learning rate, not the model" in verdicts.flags(analysis.cells["lr"], analysis)


def test_nobody_is_advised_to_add_seeds(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, Plan(effects={"rope": -0.02}))
    texts = [verdicts.sentence(c, analysis) for c in analysis.compared]
    texts += [*notes.notes(analysis), *methods.paragraphs(analysis)]
    assert not any("more seeds" in text or "power" in text for text in texts)
    assert np.isfinite(analysis.noise or np.nan)


def test_one_comparison_is_not_called_corrected(tmp_path: Path) -> None:
    two = {"swiglu": FEATURES["swiglu"]}
    analysis = analyzed(tmp_path, Plan(features=two, cells={"baseline": [], "swiglu": ["swiglu"]}))
    texts = [verdicts.sentence(analysis.cells["swiglu"], analysis), forests.effects(analysis, "").caption]
    for text in (*texts, *methods.paragraphs(analysis), analysis.p_name):
        assert not re.search(r"comparison|corrected|simultaneous", text), text


def test_an_interval_that_leaves_the_axis_ends_in_an_arrow_and_both_sides_of_0_have_room(tmp_path: Path) -> None:
    states = write_study(tmp_path, Plan(seeds=FIVE, effects={"swiglu": -0.1}))
    (path,) = tmp_path.glob("rope-seed3-*/summary.json")
    change_record(path, val_nll=json.loads(path.read_text())["val_nll"] + 2.0)
    analysis = analyse_folder(tmp_path, states)
    drawn = forests.effects(analysis, "")
    assert drawn.forest
    low, high = drawn.forest.limits
    assert {row.label: drawn.forest.cut(row) for row in drawn.forest.rows}["rope"] == (False, True)
    assert drawn.caption.endswith("Arrow: the interval goes on beyond the axis.")
    assert write_html(analysis).count('class="cut"') == 1
    assert min(-low, high) >= forests.LEAST_SIDE * (high - low) * (1 - 1e-9)
    low, high = forests.beside_zero(-1.0, 0.01)
    assert (low, high) == (-1.0, pytest.approx(1 / 3))
