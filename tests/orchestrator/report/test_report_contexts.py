"""Context lengths in the report: a table that says what could not be evaluated, and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ablatrix.models.config import GPTConfig
from ablatrix.orchestrator.report import breakdown, figures, heldout_text, methods
from ablatrix.orchestrator.report.analysis import Analysis
from ablatrix.orchestrator.report.content import Table
from tests.support.reports import analyse_folder, analyse_plan, write_html, write_markdown
from tests.support.studies import Plan, write_study

POSITIONS = {
    "alibi": {"model.positions": "alibi"},
    "rope": {"model.positions": "rope"},
    "swiglu": {"model.swiglu": True},
}


def analyzed(folder: Path, lengths: tuple[int, ...] = (32, 64, 256), **changes: object) -> Analysis:
    plan = Plan(features=POSITIONS, effects={"alibi": -0.2}, contexts=lengths, **changes)  # type: ignore[arg-type]
    return analyse_plan(folder, plan)


def test_means_effects_and_what_cannot_be(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path)
    short, trained, beyond = breakdown.by_context_length(analysis)
    assert [part.name for part in (short, trained, beyond)] == ["32", "64", "256"]
    for row in (short, trained):
        effect = row.effects["alibi"].effect
        assert effect is not None
        assert effect.mean == pytest.approx(-0.2, abs=0.05)
        assert effect.mean == pytest.approx(row.means["alibi"] - row.means["baseline"])
        assert effect.p is not None and effect.p_joint is not None
        assert effect.p_joint > effect.p
    assert set(beyond.means) == {"alibi", "rope", "all_on"}
    assert beyond.means["alibi"] == pytest.approx(trained.means["alibi"] - 0.1)
    assert all(contrast.effect is None for contrast in beyond.effects.values())
    assert beyond.reasons == dict.fromkeys(("baseline", "swiglu"), "learned positions end at 64")


def test_table_and_pages(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path)
    text, table = heldout_text.context_lengths(analysis, None)
    assert isinstance(text, str) and isinstance(table, Table)
    assert "“cannot”: learned positions end at 64." in text
    assert table.head == ["context", "tokens", "baseline", "alibi", "rope", "swiglu", "all_on"]
    (last,) = [row.cells for row in table.rows if row.cells[0] == "256"]
    assert [last[2], last[5]] == ["cannot", "cannot"] and last[3].startswith("2.")
    assert "By context length" in write_markdown(analysis) and "By context length" in write_html(analysis)


def test_curve_of_each_cell(tmp_path: Path) -> None:
    figure = figures.context_lengths(analyzed(tmp_path))
    assert figure is not None
    points = {line.label: np.exp(line.series.x).round().tolist() for line in figure.panels[0].lines}
    assert points["baseline"] == [32, 64] and points["alibi"] == [32, 64, 256]


def test_nothing_without_lengths_or_with_damaged_ones(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, lengths=())
    assert breakdown.by_context_length(analysis) == [] and figures.context_lengths(analysis) is None
    assert heldout_text.context_lengths(analysis, None) == []
    folder = tmp_path / "damaged"
    states = write_study(folder, Plan(features=POSITIONS, contexts=(64,)))
    for path in folder.glob("*/summary.json"):
        table = {"64": {"nll": "low"}, "big": {"nll": 1.0}, "128": 3, "256": {"nll": None}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val_nll_by_block": table}))
    assert breakdown.by_context_length(analyse_folder(folder, states)) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, " with learned positions, GELU feed-forward layers and LayerNorm before each sublayer"),
        (
            {
                "positions": "alibi",
                "alibi_trainable": True,
                "feedforward": "geglu",
                "norm": "rmsnorm",
                "norm_placement": "post",
                "qk_norm": True,
                "n_kv_head": 1,
                "tie_embeddings": True,
                "bias": False,
            },
            " with ALiBi, trainable slopes, GEGLU feed-forward layers, RMSNorm after each sublayer's sum, normalized "
            "queries and keys, 1 head of keys, a tied head and no biases",
        ),
        (
            {"positions": "none", "norm": "none", "feedforward": "a.b:C"},
            " with no positions, a.b:C feed-forward layers and no norm",
        ),
    ],
)
def test_methods_name_the_components(model: dict[str, object], words: str) -> None:
    config = GPTConfig.model_validate({"model_type": "gpt-nano", **model}).resolved(50, 16).model_dump()
    assert methods.components(lambda key: config[key.removeprefix("model.")]) == words
