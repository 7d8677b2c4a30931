"""The held-out text as a sample of documents, against plain numpy and a simulation with known errors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablatrix.orchestrator.report import breakdown, collect, documents, heldout_text, methods
from ablatrix.orchestrator.report.analysis import Analysis, analyze
from ablatrix.orchestrator.report.collect import RunRecord
from ablatrix.orchestrator.report.content import Table
from ablatrix.orchestrator.report.document_scores import parse_scores
from ablatrix.orchestrator.report.notes import notes
from tests.support.studies import Plan, write_study

SEEDS = (1, 2, 3, 4)


def planted(folder: Path, scores: Any, **plan: Any) -> Analysis:
    """A study of two cells whose runs have `scores(cell, seed)` as val_documents.json."""
    given = {"seeds": SEEDS, "features": {"rope": {"model.rope": True}}, "cells": {"baseline": [], "rope": ["rope"]}}
    states = write_study(folder, Plan(**{**given, **plan}))
    for run in json.loads((folder / "study.json").read_text())["runs"]:
        table = scores(run["cell"], run["seed"])
        (folder / run["id"] / "val_documents.json").write_text(json.dumps(table))
        path = folder / run["id"] / "summary.json"
        size = {"val_documents": len(table["nll"]), "val_tokens": sum(table["tokens"])}
        path.write_text(json.dumps({**json.loads(path.read_text()), **size, "val_bits_per_byte": 1.25}))
    return analyze(collect.read_study(folder, states))


def draw(effect: float = -0.05, over_seeds: float = 0.01, over_documents: float = 0.02, size: int = 60) -> Any:
    rng = np.random.default_rng(5)
    tokens = rng.integers(20, 400, size)
    kinds, shifts = rng.normal(0, over_documents, size), dict(zip(SEEDS, rng.normal(0, over_seeds, 4), strict=True))

    def scores(cell: str, seed: int) -> dict[str, Any]:
        each = np.random.default_rng([seed, cell == "rope"]).normal(3, 0.001, size)
        if cell == "rope":
            each = each + effect + kinds + shifts[seed]
        return {"line": list(range(1, size + 1)), "tokens": tokens.tolist(), "nll": (each * tokens).tolist()}

    return scores


def test_standard_errors_against_plain_loops(tmp_path: Path) -> None:
    scores = draw()
    analysis = planted(tmp_path / "study", scores)
    error = analysis.cells["rope"].text_error
    assert error and (error.seeds, error.documents) == (4, 60)
    size, tokens = range(60), scores("rope", 1)["tokens"]
    d = [sum(scores("rope", s)["nll"][j] - scores("baseline", s)["nll"][j] for s in SEEDS) / 4 for j in size]
    effect = sum(d) / sum(tokens)
    squares = sum((d[j] - effect * tokens[j]) ** 2 for j in size)
    over_documents = math.sqrt(60 / 59 * squares) / sum(tokens)
    effect_of_cell = analysis.cells["rope"].effect
    assert effect_of_cell and effect_of_cell.df and effect_of_cell.half_width
    over_seeds = effect_of_cell.half_width / float(stats.t.ppf(0.975, effect_of_cell.df))
    combined = math.sqrt(over_seeds**2 + over_documents**2)
    found = (error.effect, error.over_documents, error.over_seeds, error.combined)
    np.testing.assert_allclose(found, (effect, over_documents, over_seeds, combined), rtol=1e-9)
    df = combined**4 / (over_seeds**4 / effect_of_cell.df + over_documents**4 / 59)
    np.testing.assert_allclose((error.low, error.high), stats.t(df, effect, combined).interval(0.95), rtol=1e-9)


def test_without_a_verdict_the_pairs_give_the_error(tmp_path: Path) -> None:
    scores = draw()
    analysis = planted(tmp_path / "study", scores)
    error = documents.text_error(analysis.cells["rope"].usable, analysis.cells["baseline"].usable, None)
    each = [sum(scores("rope", s)["nll"]) - sum(scores("baseline", s)["nll"]) for s in SEEDS]
    expected = float(stats.sem([total / sum(scores("rope", 1)["tokens"]) for total in each]))
    assert error and error.over_seeds == pytest.approx(expected, rel=1e-9)


def test_errors_are_those_of_repeated_text() -> None:
    """The standard error is the spread of the effect over many samples of documents with effects of their own."""
    rng = np.random.default_rng(1)
    found, errors = [], []
    for _ in range(2000):
        tokens = rng.integers(20, 400, 50).astype(float)
        d = (0.03 + rng.normal(0, 0.1, 50)) * tokens
        effect, error = documents.document_error(d, tokens)
        found.append(effect)
        errors.append(error)
    assert np.mean(found) == pytest.approx(0.03, abs=0.001)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.05)


def test_one_seed_has_no_error_over_seeds(tmp_path: Path) -> None:
    analysis = planted(tmp_path / "study", draw(), seeds=(1,))
    error = analysis.cells["rope"].text_error
    assert error and error.over_documents > 0 and error.over_seeds is None and error.low is None


def test_runs_scored_on_other_tokens_are_not_compared(tmp_path: Path) -> None:
    scores = draw()

    def shorter(cell: str, seed: int) -> dict[str, Any]:
        table: dict[str, Any] = scores(cell, seed)
        return {name: column[:50] for name, column in table.items()} if cell == "rope" else table

    analysis = planted(tmp_path / "study", shorter)
    assert analysis.cells["rope"].text_error is None


@pytest.mark.parametrize("data", [b"", b"[1]", b"{}", b'{"line": [1], "tokens": [0], "nll": [1]}', b'{"line": 1}'])
def test_damaged_files(data: bytes) -> None:
    assert parse_scores(data) is None


def test_section(tmp_path: Path) -> None:
    analysis = planted(tmp_path / "study", draw())
    text, table = heldout_text.over_documents(analysis)
    assert isinstance(table, Table) and "60 documents" in str(text)
    assert table.rows[0].cells[:3] == ["baseline", f"{1.25:.{analysis.decimals}f}", "—"]
    error = analysis.cells["rope"].text_error
    assert error and table.rows[1].cells[4] == f"{error.over_documents:.{analysis.decimals + 1}f}"
    row = heldout_text.columns(analysis.cells["rope"])
    assert row["se_combined"] == error.combined and row["bits_per_byte"] == 1.25


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"test_size": 1}, "tokens of the last 1 document of the corpus"),
        ({"test_size": 0.01}, "tokens of the last 0.01 of the corpus lines"),
        ({"test_size": 10, "test_file": "val.jsonl"}, "tokens of val.jsonl)"),
    ],
)
def test_methods_name_the_held_out_text(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    analysis = planted(tmp_path / "study", draw())

    def changed(runs: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
        return tuple(replace(run, config={**run.config, "data": {**run.config["data"], **data}}) for run in runs)

    cells = {name: replace(cell, runs=changed(cell.runs)) for name, cell in analysis.cells.items()}
    study = replace(analysis.study, runs=changed(analysis.study.runs))
    assert any(words in str(block) for block in methods.paragraphs(replace(analysis, study=study, cells=cells)))


def test_small_texts_are_named(tmp_path: Path) -> None:
    assert any("held-out text is small (60 documents" in note for note in notes(planted(tmp_path / "a", draw())))
    large = planted(tmp_path / "b", draw(size=800))
    assert not any("small" in note for note in notes(large))


def test_domains_that_differ_from_the_whole_text(tmp_path: Path) -> None:
    """The feature helps by .2 in one of two equal domains and does nothing in the other: .1 on the whole text."""
    folder = tmp_path / "study"
    plan = Plan(seeds=SEEDS, features={"rope": {"model.rope": True}}, domains=("web", "code"), noise=0.0)
    states = write_study(folder, plan)
    for run in json.loads((folder / "study.json").read_text())["runs"]:
        path = folder / run["id"] / "summary.json"
        jitter = np.random.default_rng(run["seed"]).normal(0, 0.003)
        gain = 0.2 + jitter if run["features"] else 0.0
        by_domain = {"web": {"nll": 3.0, "tokens": 2000}, "code": {"nll": 2.0 - gain, "tokens": 2000}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "val_nll_by_domain": by_domain}))
    web, code = sorted(breakdown.by_domain(analyze(collect.read_study(folder, states))), key=lambda p: -p.means["rope"])
    for part, expected in ((web, 0.1), (code, -0.1)):
        effect = part.excess["rope"].effect
        assert effect and effect.mean == pytest.approx(expected, abs=0.005)
        assert effect.p_joint is not None and effect.p_joint < 0.01
