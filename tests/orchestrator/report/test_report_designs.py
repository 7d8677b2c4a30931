"""What the numbers of whole studies come to: combinations, equal budgets, speed, domains, several studies."""

from __future__ import annotations

import csv
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.orchestrator.report import (
    breakdown,
    content,
    document,
    drawing,
    forests,
    formatting,
    methods,
    notes,
    wording,
)
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.build import compare, verdict_rows
from ablatrix.orchestrator.report.contrasts import Contrast
from ablatrix.orchestrator.report.record import record_of
from ablatrix.orchestrator.study.screening import Screen, fractional, plackett_burman
from ablatrix.trainer.rundir.errors import UserError
from tests.support.reports import analyse_folder, analyse_plan, write_html
from tests.support.studies import FEATURES, Plan, held_out, write_study

THREE = {name: FEATURES[name] for name in ("swiglu", "rmsnorm", "rope")}


def effect_of(contrasts: tuple[Contrast, ...], name: str) -> float:
    found = next(c for c in contrasts if c.name == name)
    assert found.effect is not None
    return found.effect.mean


def every_combination(features: list[str]) -> dict[str, list[str]]:
    sets = [list(c) for size in range(len(features) + 1) for c in combinations(features, size)]
    return {"+".join(s) or "baseline": s for s in sets}


def test_all_on_against_the_sum_of_its_parts(tmp_path: Path) -> None:
    plan = Plan(effects={"swiglu": -0.1, "rope": -0.05}, extra={"all_on": 0.07}, noise=0.0)
    analysis = analyse_plan(tmp_path, plan)
    assert [c.name for c in analysis.interactions] == ["all_on"]
    assert effect_of(analysis.interactions, "all_on") == pytest.approx(0.07)
    assert analysis.main_effects == ()
    assert analysis.left_out == ()


def test_a_full_factorial_has_main_effects_and_interactions(tmp_path: Path) -> None:
    cells = every_combination(list(THREE))
    plan = Plan(features=THREE, cells=cells, effects={"swiglu": -0.1}, extra={"swiglu+rope": 0.06}, noise=0.0)
    analysis = analyse_plan(tmp_path, plan)
    assert [c.name for c in analysis.main_effects] == list(THREE)
    # the extra is in one of the four pairs of cells that differ in swiglu only
    assert effect_of(analysis.main_effects, "swiglu") == pytest.approx(-0.1 + 0.06 / 4)
    assert effect_of(analysis.interactions, "swiglu × rope") == pytest.approx(0.06 / 2)
    assert effect_of(analysis.interactions, "swiglu × rmsnorm") == pytest.approx(-0.06 / 2)
    *_, heading, _, table = document.combinations(analysis, {})
    assert heading == content.Heading("Marginal means") and isinstance(table, content.Table)
    on = [cell.mean for name, cell in analysis.cells.items() if "rope" in name]
    assert table.rows[-1].cells[:3] == ["rope", "on", f"{np.mean([m for m in on if m]):.{analysis.decimals}f}"]
    assert [row.cells[1] for row in table.rows] == ["off", "on"] * 3


def screened(features: dict[str, Any], screen: Screen) -> dict[str, list[str]]:
    sets = [[f for i, f in enumerate(features) if cell >> i & 1] for cell in screen.cells]
    return {"+".join(on) or "baseline": on for on in sets}


def test_a_fraction_is_read_by_its_main_effects(tmp_path: Path) -> None:
    cells = screened(FEATURES, fractional(5))
    plan = Plan(seeds=(1, 2), cells=cells, effects={"rope": -0.1}, noise=0.004, design=[{"fractional": 5}])
    analysis = analyse_plan(tmp_path, plan)
    assert effect_of(analysis.main_effects, "rope") == pytest.approx(-0.1, abs=0.01)
    assert len(analysis.interactions) == 10
    assert {cell.verdict for cell in analysis.compared} == {"no claim"}
    assert re.match(r"Main effects: rope \(−0\.\d+ nats\) helps\.", wording.headline(analysis))
    (method,) = [text for text in methods.paragraphs(analysis) if "fractional factorial" in text]
    assert "2^(5-1): 5 features in 16 cells, resolution V; generators: E = ABCD (A swiglu" in method
    assert record_of(analysis)["design"] == [{"fractional": 5}]


def test_a_plackett_burman_design_is_flagged_as_blind_to_interactions(tmp_path: Path) -> None:
    cells = screened(FEATURES, plackett_burman(5))
    analysis = analyse_plan(
        tmp_path, Plan(seeds=(1, 2), cells=cells, effects={"rope": -0.1}, design=["plackett_burman"])
    )
    assert any("blind to interactions" in note for note in notes.notes(analysis))
    assert "Interactions are not estimated." in wording.headline(analysis)
    assert analysis.interactions == ()


def test_all_pairs_are_held_against_their_parts(tmp_path: Path) -> None:
    cells = {name: on for name, on in every_combination(list(THREE)).items() if len(on) < 3}
    plan = Plan(features=THREE, cells=cells, effects={"rope": -0.1}, extra={"rmsnorm+rope": -0.04}, noise=0.0)
    analysis = analyse_plan(tmp_path, plan)
    assert [c.name for c in analysis.interactions] == ["swiglu+rmsnorm", "swiglu+rope", "rmsnorm+rope"]
    assert effect_of(analysis.interactions, "rmsnorm+rope") == pytest.approx(-0.04)
    assert effect_of(analysis.interactions, "swiglu+rope") == pytest.approx(0.0)


def test_leaving_one_out_shows_what_it_adds_to_the_others(tmp_path: Path) -> None:
    names = list(THREE)
    cells = {"baseline": [], "all_on": names, **{f"without_{n}": [m for m in names if m != n] for n in names}}
    analysis = analyse_plan(tmp_path, Plan(features=THREE, cells=cells, effects={"rope": -0.08}, noise=0.0))
    assert [c.name for c in analysis.left_out] == names
    assert effect_of(analysis.left_out, "rope") == pytest.approx(-0.08)
    assert effect_of(analysis.left_out, "swiglu") == pytest.approx(0.0)


def test_a_design_without_a_baseline_is_held_against_its_first_cell(tmp_path: Path) -> None:
    analysis = analyse_plan(tmp_path, Plan(features=THREE, cells={"swiglu": ["swiglu"], "rope": ["rope"]}))
    assert analysis.reference == "swiglu"


def test_equal_flops_and_equal_time_read_the_dearer_curve_earlier(tmp_path: Path) -> None:
    dear = {"wide": {"model.n_embd": 96}, "swiglu": {"model.swiglu": True}}
    cells = {"baseline": [], "wide": ["wide"], "swiglu": ["swiglu"]}
    plan = Plan(features=dear, cells=cells, noise=0.0, shared=0.0, evaluations=30, rows=120)
    analysis = analyse_plan(tmp_path, plan)
    wide, base = analysis.cells["wide"], analysis.base
    assert base is not None
    assert wide.effect is not None
    assert wide.equal_flops is not None
    assert wide.effect.mean == pytest.approx(0.0)
    assert wide.flops_per_token is not None
    assert base.flops_per_token is not None
    share = base.flops_per_token / wide.flops_per_token
    truth = held_out(share * 600, 600, 0.0, "done") - held_out(600, 600, 0.0, "done")
    assert wide.equal_flops.mean == pytest.approx(truth, rel=0.02)
    slow = analysis.cells["swiglu"]  # 15% slower in these studies
    assert slow.equal_seconds is not None
    truth = held_out(600 / 1.15, 600, 0.0, "done") - held_out(600, 600, 0.0, "done")
    assert slow.equal_seconds.mean == pytest.approx(truth, rel=0.1)
    assert slow.equal_flops is not None
    assert abs(slow.equal_flops.mean) < 0.002


def test_cells_with_other_numbers_of_tokens_are_compared_at_the_smaller(tmp_path: Path) -> None:
    features = {"batch": {"trainer.batch_size": 16}}
    plan = Plan(features=features, cells={"baseline": [], "batch": ["batch"]}, noise=0.0, shared=0.0, evaluations=60)
    analysis = analyse_plan(tmp_path, plan)
    cell = analysis.cells["batch"]
    assert cell.read_off
    assert cell.effect is not None
    truth = held_out(300, 600, 0.0, "done") - held_out(600, 600, 0.0, "done")
    assert cell.effect.mean == pytest.approx(truth, rel=0.02)


def test_speed_to_the_baselines_loss(tmp_path: Path) -> None:
    plan = Plan(effects={"swiglu": -0.1, "warmup": 0.2}, noise=0.0, evaluations=60)
    analysis = analyse_plan(tmp_path, plan)
    fast, slow, base = (analysis.cells[n].tokens_to for n in ("swiglu", "warmup", "baseline"))
    assert fast is not None
    assert slow is not None
    assert base is not None
    assert base.factor == pytest.approx(1.0)
    curve = np.array([held_out(s, 600, -0.1, "done") for s in range(1, 601)])
    step = 1 + int(np.argmax(curve <= held_out(600, 600, 0.0, "done")))
    assert fast.factor == pytest.approx(600 / step, rel=0.02)
    assert not fast.censored
    assert slow.censored
    assert len(slow.limits) == 3
    assert slow.factor == pytest.approx(1.0)


def test_effects_per_domain(tmp_path: Path) -> None:
    analysis = analyse_plan(tmp_path, Plan(effects={"swiglu": -0.3}, domains=("web", "code")))
    web, code = breakdown.by_domain(analysis)
    assert (web.name, code.name) == ("web", "code")
    assert list(web.effects) == [*FEATURES, "all_on"]
    found = code.effects["swiglu"]
    assert found.effect is not None
    assert found.effect.mean == pytest.approx(-0.3, abs=0.05)
    assert found.effect.p_joint is not None
    assert found.effect.p is not None
    assert found.effect.p_joint > found.effect.p


def test_no_effect_is_said_to_be_none(tmp_path: Path) -> None:
    features = {f"f{i}": {"trainer.warmup_steps": i + 1} for i in range(6)}
    analysis = analyse_plan(tmp_path, Plan(seeds=(1, 2, 3, 4, 5), features=features, rng=4))
    assert {row.verdict for row in verdict_rows(analysis)[1:]} == {"inconclusive"}


def test_a_planted_effect_of_two_seed_spreads_is_found(tmp_path: Path) -> None:
    features = {f"f{i}": {"trainer.warmup_steps": i + 1} for i in range(6)}
    plan = Plan(
        seeds=(1, 2, 3, 4, 5), features=features, effects={"f3": -2 * np.hypot(0.02, 0.006)}, shared=0.02, noise=0.006
    )
    plan.cells = {"baseline": [], **{f: [f] for f in features}}
    found = verdict_rows(analyse_plan(tmp_path, plan))
    assert {row.cell: row.verdict for row in found if row.verdict == "helps"} == {"f3": "helps"}


@pytest.mark.slow
def test_studies_side_by_side(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_study(one, Plan(name="first", effects={"swiglu": -0.2}, noise=0.004))
    write_study(two, Plan(name="second", seeds=(1,), features=THREE, effects={"swiglu": -0.1}))
    found = compare([one, two])
    verdicts = {row.cell: row.verdict for row in found.rows}
    assert verdicts["swiglu · first"] == "helps"
    assert verdicts["swiglu · second"] == "no claim"
    assert {path.name for path in found.paths} == {
        "comparison.csv",
        "report.md",
        "report.html",
        "effects.png",
    }
    with found.paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["study"], r["cell"]) for r in rows][:2] == [("first", "baseline"), ("first", "swiglu")]
    assert len(rows) == 7 + 5
    assert any("all_on has different settings" in note for note in found.notes)
    with pytest.raises(UserError, match="at least two"):
        compare([one])


@pytest.mark.slow
def test_studies_on_other_data_are_distinguished(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_study(folder, Plan(seeds=(1,), features=THREE))
    for path in two.glob("*/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_fingerprint": "other"}))
    found = compare([one, two], folder=tmp_path / "both")
    assert any("read different data" in note for note in found.notes)
    assert all(path.parent == tmp_path / "both" for path in found.paths)
    assert {row.cell.rpartition(" · ")[2] for row in found.rows} == {"planted (one)", "planted (two)"}


def written(analysis: Analysis) -> str:
    """The words of the page of an analysis."""
    return write_html(analysis).replace("\N{NO-BREAK SPACE}", " ")


def test_each_design_has_its_tables_on_the_page(tmp_path: Path) -> None:
    names = list(THREE)
    full = every_combination(names)
    text = written(analyse_plan(tmp_path / "full", Plan(features=THREE, cells=full, effects={"rope": -0.1})))
    assert "Main effects" in text
    assert "Full factorial design: main effects use every run" in text
    one_out = {"all_on": names, **{f"without_{n}": [m for m in names if m != n] for n in names}}
    plan = Plan(features=THREE, cells=one_out, fates={("without_rope", 2): "failed"})
    text = written(analyse_plan(tmp_path / "out", plan))
    assert "Leave one out" in text
    assert "The design has no cell without features; effects are differences from all_on." in text
    partial = Plan(features=THREE, cells=full, fates={("rope", 1): "failed"})
    assert "missing)" not in written(analyse_plan(tmp_path / "whole", Plan(features=THREE, cells=full)))
    assert "1 run missing)" in written(analyse_plan(tmp_path / "partial", partial))


@pytest.mark.slow
def test_a_large_study_folds_away_what_says_nothing(tmp_path: Path) -> None:
    features = {f"f{i:02d}": {"trainer.warmup_steps": i + 1} for i in range(65)}
    plan = Plan(features=features, cells={"baseline": [], **{f: [f] for f in features}}, seeds=(1, 2), rows=8)
    plan.fates = {("f07", 1): "diverged", ("f07", 2): "diverged"}
    analysis = analyse_plan(tmp_path, plan)
    text = written(analysis)
    assert "A sentence per cell (66)" in text
    assert len(re.findall(r"<td class=\"l name\">f\d\d</td>", text)) == 65
    drawn = drawing.layout(forests.effects(analysis, ""))
    assert "The first 36 of 66 rows; 30 more are in comparison.csv." in [t.get_text() for t in drawn.texts]
    assert "diverged in 2 of 2 finished runs" in text


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("val_tokens", 17, "held-out sets differ in size"),
        ("data_fingerprint", "other", "read different data"),
        ("device", "cuda", "different devices"),
        ("tokens", 1000, "different numbers of tokens"),
    ],
)
def test_what_should_be_equal_and_is_not_is_said(tmp_path: Path, key: str, value: object, note: str) -> None:
    states = write_study(tmp_path, Plan(features=THREE, seeds=(1, 2)))
    path = next(tmp_path.glob("rope-seed2-*")) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert any(note in said for said in notes.notes(analyse_folder(tmp_path, states)))


def test_numbers_are_written_for_people() -> None:
    assert formatting.quantity(1_234_567) == "1.23 M"
    assert formatting.quantity(0) == "0"
    assert formatting.quantity(None) == "—"
    assert formatting.quantity(312_000_000, "B") == "312 MB"
    assert [formatting.duration(s) for s in (0.5, 59.4, 95, 7260)] == ["0.5 s", "59.4 s", "1 min 35 s", "2 h 1 min"]
    assert formatting.p_text(0.0004) == "< 0.001"
    assert formatting.p_text(0.0449) == "0.045"
    assert formatting.signed(-0.04213, 4) == "−0.0421"
