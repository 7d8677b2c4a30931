"""Reports of studies with a scale axis: each size is compared with its own baseline."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.report import across_sizes, build, collect, record, sizes_section, tables, wording
from ablatrix.orchestrator.report.analysis import Analysis, analyze
from ablatrix.orchestrator.report.content import Table
from tests.support.studies import Plan, write_sizes

FEATURES = {"swiglu": {"model.swiglu": True}, "cosine": {"trainer.use_cosine": True}}
SIZES = {
    "gpt-nano": {"swiglu": -0.05, "cosine": 0.06},
    "gpt-micro": {"swiglu": -0.10, "cosine": 0.0},
    "gpt-mini": {"swiglu": -0.15, "cosine": -0.06},
}


def plan(effects: dict[str, float]) -> Plan:
    cells = {"baseline": [], "swiglu": ["swiglu"], "cosine": ["cosine"]}
    return Plan(features=FEATURES, cells=cells, effects=effects, noise=0.003)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sizes(tmp_path / "study", {size: plan(effects) for size, effects in SIZES.items()})
    return tmp_path / "study"


def read(folder: Path) -> Analysis:
    return analyze(collect.read_study(folder, {}))


def test_each_size_is_compared_with_its_own_baseline(folder: Path) -> None:
    analysis = read(folder)
    assert list(analysis.by_size) == list(SIZES)
    for size, effects in SIZES.items():
        found = analysis.by_size[size]
        assert {run.size for run in found.study.runs} == {size}
        for name, effect in effects.items():
            known = found.cells[name].effect
            assert known is not None
            assert known.n == 3
            assert abs(known.mean - effect) < 0.01
    assert [str(analysis.by_size[size].cells["cosine"].verdict) for size in SIZES] == ["hurts", "inconclusive", "helps"]


def test_the_headline_is_of_the_largest_size_with_results(folder: Path) -> None:
    analysis = read(folder)
    assert wording.headline(analysis).startswith("At gpt-mini, the largest of 3 sizes: swiglu (−0.14")
    names = [f"{cell}@{size}" for size in SIZES for cell in ("baseline", "swiglu", "cosine")]
    assert [row.cell for row in build.verdict_rows(analysis)] == names
    for path in folder.glob("*@gpt-mini-*/summary.json"):
        path.unlink()
    assert wording.headline(read(folder)).startswith("At gpt-micro, the largest of 3 sizes with results so far: swiglu")


def test_tables_and_record_have_every_size(folder: Path) -> None:
    analysis = read(folder)
    rows = list(csv.DictReader(io.StringIO(tables.comparison(analysis))))
    cells = ("baseline", "swiglu", "cosine")
    assert [(row["size"], row["cell"]) for row in rows] == [(size, cell) for size in SIZES for cell in cells]
    found = record.record_of(analysis)
    names = [(cell["size"], cell["cell"]) for cell in found["cells"]]
    assert names == [(row["size"], f"{row['cell']}@{row['size']}") for row in rows]
    assert found["runs"]["planned"] == 27
    assert len(tables.summary(analysis).splitlines()) == 28
    assert len(re.findall(r"@gpt-micro &", tables.latex(analysis))) == 3


def test_the_line_over_compute_follows_the_planted_effects(folder: Path) -> None:
    analysis = read(folder)
    swiglu, cosine = across_sizes.find_trends(analysis)
    flops = {size: across_sizes.training_flops(found.base) for size, found in analysis.by_size.items()}
    base = analysis.by_size["gpt-micro"].cells["baseline"].runs[0]
    assert flops["gpt-micro"] == (base.flops_per_token or 0) * (base.number("tokens") or 0)
    for trend, word in ((swiglu, "grows"), (cosine, "changes sign")):
        assert trend.line is not None
        assert trend.shown
        assert trend.direction == word
        known = np.polyfit(np.log(list(flops.values())), [SIZES[size][trend.cell] for size in SIZES], 1)
        assert abs(trend.line.slope - known[0]) < 4 * trend.line.slope_error
        assert trend.ahead is not None
        assert trend.ahead.extrapolated
        assert np.isclose(trend.ahead.compute, (flops["gpt-mini"] or 0) ** 2 / (flops["gpt-micro"] or 1))
    assert wording.headline(analysis).endswith(
        "help. With compute, the effect of swiglu grows and the effect of cosine changes sign."
    )


def test_the_section_shows_every_size_and_what_is_extrapolated(folder: Path) -> None:
    analysis = read(folder)
    drawn = sizes_section.figure(analysis)
    assert drawn is not None
    assert drawn.title == "With compute, the effect of swiglu grows; the effect of cosine changes sign"
    assert [line.label for line in drawn.panels[0].lines] == ["fitted", "extrapolated", "measured"]
    blocks = sizes_section.blocks(analysis, drawn)
    sentences = [block for block in blocks if isinstance(block, str)]
    assert re.search(r"swiglu: the effect grows with compute, −0\.\d+ nats per tenfold compute \(95% int", sentences[1])
    assert "Extrapolated to 3.15 times the largest compute: −0." in sentences[1]
    assert sentences[2].startswith("cosine: the effect changes sign with compute, −0.0")
    (sizes,) = (block for block in blocks if isinstance(block, Table))
    found = {(row.cells[0], row.cells[1]): row.cells[3:] for row in sizes.rows}
    assert [found[size, "cosine"][0] for size in SIZES] == ["hurts", "inconclusive", "helps"]
    assert found["gpt-nano", "baseline"] == ["baseline", "\N{EM DASH}", found["gpt-nano", "baseline"][2], "236 GFLOPs"]
    assert "interpolation of the baseline's loss, as fewer than 4 sizes" in sizes_section.method(analysis)


def test_two_sizes_give_no_trend(tmp_path: Path) -> None:
    write_sizes(tmp_path / "study", {size: plan(SIZES[size]) for size in ("gpt-nano", "gpt-mini")})
    trend = across_sizes.find_trends(read(tmp_path / "study"))[0]
    assert not trend.shown
    assert trend.ahead is None
    assert sizes_section.sentence(trend, read(tmp_path / "study")).endswith("with only two sizes, no trend is tested.")


def test_a_gain_needs_a_loss_that_falls_with_compute(tmp_path: Path) -> None:
    levels = {"gpt-nano": 0.0, "gpt-micro": -0.2, "gpt-mini": -0.5}
    cells = ("baseline", "swiglu", "cosine")
    plans = {s: replace(plan(SIZES[s]), extra=dict.fromkeys(cells, level)) for s, level in levels.items()}
    write_sizes(tmp_path / "study", plans)
    gains = across_sizes.find_trends(read(tmp_path / "study"))[0].gains
    assert list(gains) == list(levels)
    assert all(gain.low < gain.value < gain.high for gain in gains.values())
    assert not gains["gpt-nano"].extrapolated
    assert gains["gpt-mini"].extrapolated
    assert gains["gpt-micro"].value > 1
