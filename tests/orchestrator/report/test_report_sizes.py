"""Reports of studies with a scale axis: each size is compared with its own baseline."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from ablatrix.orchestrator.report import build, collect, record, tables, wording
from ablatrix.orchestrator.report.analysis import Analysis, analyse
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
    return analyse(collect.read_study(folder, {}))


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
