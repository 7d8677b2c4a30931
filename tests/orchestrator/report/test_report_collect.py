"""Reading run folders: torn files, spoiled rows, the cache."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.job.metric_series import MetricSeries
from ablatrix.orchestrator.report import collect, divergence, loss_curve
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.loss_csv import COLUMNS, parse_columns
from tests.support.studies import Plan, write_study

HEADER = ",".join(COLUMNS)
ROWS = ("1,6.25,0.5,,0.0005,1.5,512,0.5", "10,nan,0.25,3.125,0.0005,,5120,2.75", "20,3.5,0.25,,0.0005,0.75,10240,5.25")
SMALL = Plan(seeds=(1, 2), features={"swiglu": {"model.swiglu": True}}, cells={"baseline": [], "swiglu": ["swiglu"]})


def test_empty_cells_and_nan_are_nan() -> None:
    rows = loss_curve.parse_rows("\n".join([HEADER, *ROWS, ""]).encode())
    assert np.isnan(rows["loss"][1])
    assert np.isnan(rows["val_loss"][[0, 2]]).all()
    assert rows["val_loss"][1] == 3.125
    assert np.isnan(rows["grad_norm"][1])


@pytest.mark.parametrize("piece", [100, loss_curve.PIECE])
def test_the_quick_parser_agrees_with_the_tolerant_one_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(loss_curve, "PIECE", piece)
    rng = np.random.default_rng(1)
    numbers = [
        f"{i + 1},{float(rng.normal(3, 1))!r},{float(rng.exponential(1e-7))!r},"
        f"{'' if i % 7 else float(rng.normal())!r},0.0005,{float(rng.lognormal(0, 30))!r},{512 * i},{i / 7!r}"
        for i in range(300)
    ]
    numbers += ["301,inf,-inf,nan,1e400,,1,1", f"302,{10**400},5e-324,,-0.0,1.5,{10**25},0.1"]
    text = "\n".join([HEADER, *numbers, ""])
    damaged = [text]
    for place in rng.integers(len(HEADER) + 1, len(text) - 1, 300).tolist():
        damaged.append(text[:place] + str(rng.choice(["", "x", ",", "\n", "-", "1", " ", "e"])) + text[place + 1 :])
    for content in damaged:
        ours = loss_curve.parse_rows(content.encode())
        for name, column in zip(COLUMNS, zip(*parse_columns(content), strict=True), strict=True):
            if name in ours:
                assert np.array_equal(ours[name], [float(cell or "nan") for cell in column], equal_nan=True)


@pytest.mark.parametrize("order", [(0, 1, 2, 1, 2), (0, 2, 1, 2), (0, 0, 1, 2)])
def test_rows_of_two_trainers_at_once_count_once(order: tuple[int, ...]) -> None:
    rows = loss_curve.parse_rows("\n".join([HEADER, *(ROWS[i] for i in order), ""]).encode())
    assert rows["iter"].tolist() == [1, 10, 20] and rows["loss"][[0, 2]].tolist() == [6.25, 3.5]


@pytest.mark.parametrize(
    "spoiled", ["7,1.0", "7,abc,0.1,,0.1,0.1,1,1", "x,1,0.1,,0.1,0.1,1,1", "7,1,2,3,4,5,6,7,8,9", "\0\0\0"]
)
def test_a_spoiled_row_spoils_only_itself(spoiled: str) -> None:
    rows = loss_curve.parse_rows("\n".join([HEADER, ROWS[0], spoiled, ROWS[2], ""]).encode())
    assert rows["iter"][0] == 1
    assert rows["iter"][-1] == 20
    assert rows["loss"][-1] == 3.5


@pytest.mark.parametrize("text", ["", "\n", "step,loss\n1,2\n", "iter", HEADER, HEADER + "\n"])
def test_no_rows_is_an_empty_curve(text: str) -> None:
    curve = loss_curve.reduce_rows(loss_curve.parse_rows(text.encode()))
    assert curve.rows == 0
    assert math.isnan(curve.last_iter)
    assert len(curve.train["loss"]) == 0


def test_rows_are_averaged_in_groups_of_a_power_of_two() -> None:
    steps = np.arange(1, 1001, dtype=float)
    columns = {name: steps.copy() for name in loss_curve.READ}
    columns["loss"][4] = np.nan
    columns["val_loss"][:-1] = np.nan
    curve = loss_curve.reduce_rows(columns)
    assert {len(values) for values in curve.train.values()} == {250}  # groups of four
    assert curve.train["loss"][:2].tolist() == [2.5, 7.0]
    assert curve.train["iter"][-1] == 998.5
    assert curve.held_out["val_loss"].tolist() == [1000.0]
    assert (curve.rows, curve.last_iter) == (1000, 1000.0)


def test_what_the_files_say_wins_nothing_over_what_they_lack(tmp_path: Path) -> None:
    states = write_study(tmp_path, SMALL)
    run = next(tmp_path.glob("swiglu-seed1-*"))
    (run / "summary.json").write_text("{half")
    (run / "config.json").unlink()
    record = next(r for r in collect.read_study(tmp_path, states).runs if r.id == run.name)
    assert not record.usable
    assert record.value is None
    assert record.parameters is None
    assert record.curve.rows > 0


@pytest.mark.parametrize(
    ("change", "diverged"),
    [
        ({}, False),
        ({"diverged": True}, True),
        ({"val_nll": None}, True),
        ({"val_nll": 9.0, "final_loss": 9.0}, True),
        ({"val_nll": 9.0}, False),  # training loss fell: overfitting
        ({"val_nll": 9.0, "initial_loss": None}, True),  # only the held-out loss has two ends
        ({"val_nll": 6.9, "initial_loss": 0.7, "final_loss": 0.5}, False),
    ],
)
def test_diverged_is_not_finite_or_worse_than_the_start_of_each_measure(
    tmp_path: Path, change: dict, diverged: bool
) -> None:
    states = write_study(tmp_path, SMALL)
    path = next(tmp_path.glob("swiglu-seed1-*")) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    record = next(r for r in collect.read_study(tmp_path, states).runs if r.cell == "swiglu" and r.seed == 1)
    assert record.diverged is diverged
    assert record.usable is not diverged


@pytest.mark.parametrize(
    ("rows", "diverged"),
    [
        ([(0.695, 0.898), (0.464, 0.839)], False),  # held-out loss above the first training loss all the time
        ([(None, 0.898), (None, 0.839)], False),
        ([(None, 0.55), (None, 0.6)], False),
        ([(None, 0.9), (None, 4.0)], True),
        ([(0.7, 0.9), (5.0, 6.0)], True),
        ([(0.7, 0.9), (0.1, 1.6)], False),
        ([(0.7, None), (0.6, 0.9)], False),
        ([(0.0021, None), (0.0022, None)], False),
        ([(0.7, None), (3.0, None)], True),
    ],
)
def test_each_measure_of_a_command_is_compared_with_its_own_start(
    tmp_path: Path, rows: list[tuple[float | None, float | None]], diverged: bool
) -> None:
    series = MetricSeries()
    for step, (loss, val_loss) in enumerate(rows):
        series.add({"iter": step, "loss": loss, "val_loss": val_loss})
    found = series.headline()
    assert found
    measure, value, _ = found
    states = write_study(tmp_path, SMALL)
    for folder in tmp_path.glob("swiglu-seed1-*"):
        (folder / "loss.csv").write_text(series.to_csv())
        ends = {"initial_loss": series.first_loss(), "final_loss": series.final_loss()}
        summary = {"iters": 1, "val_nll": value, "measure": measure, "diverged": False, **ends}
        (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))
    record = next(r for r in collect.read_study(tmp_path, states).runs if r.cell == "swiglu" and r.seed == 1)
    assert record.diverged is diverged


@pytest.mark.parametrize(
    ("first", "last", "higher_is_better", "worse"),
    [(0.5, 0.9, True, False), (0.5, 0.3, True, True), (-300, -250, True, False), (-250, -310, True, True),
     (2.0, 2.3, False, False), (2.0, 2.5, False, True), (-3.0, -2.0, False, True), (2.0, math.nan, False, False)],
)  # fmt: skip
def test_worse_by_a_margin_in_either_direction(first: float, last: float, higher_is_better: bool, worse: bool) -> None:
    assert divergence.ended_worse(first, last, higher_is_better) is worse


@pytest.mark.parametrize(
    ("key", "wanted", "written", "same"),
    [
        ("trainer.learning_rate", 5e-4, 0.0005, True),
        ("trainer.betas", [0.9, 0.99], [0.9, 0.99], True),
        ("trainer.betas", [0.9, 0.99], [0.9, 0.95], False),
        ("model.swiglu", True, "True", False),
        ("model.swiglu", True, 1, True),
        ("model.swiglu", True, False, False),
        ("trainer.warmup_steps", 20, 0, False),
        ("model.n_layer", None, 3, True),
        ("data.file_path", "a.jsonl", "/abs/a.jsonl", True),
        ("system.work_dir", "a", "b", True),
    ],
)
def test_overrides_are_looked_for_in_the_configuration(key: str, wanted: object, written: object, same: bool) -> None:
    section, _, name = key.partition(".")
    record = collect.RunRecord(
        "r", "c", 1, (), {key: wanted}, "done", "", {section: {name: written}}, {}, {}, loss_curve.reduce_rows(EMPTY)
    )
    assert record.wrong_overrides == (() if same else (key,))


EMPTY = {name: np.empty(0) for name in loss_curve.READ}


@pytest.mark.parametrize("broken", ['{"runs": [{"id": "x"}]}', '{"runs": [7]}', '{"runs": {}}', "[]", "{", ""])
def test_a_damaged_plan_is_one_sentence(tmp_path: Path, broken: str) -> None:
    (tmp_path / "study.json").write_text(broken)
    with pytest.raises(UserError, match=r"study\.json"):
        collect.read_study(tmp_path, {})


def test_files_are_read_by_threads_in_the_same_order_where_reading_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = write_study(tmp_path, SMALL)
    monkeypatch.setattr(collect, "READ_AT_ONCE", 2)
    once = collect.read_study(tmp_path, states)
    monkeypatch.setattr(collect, "SLOW", -1.0)
    by_threads = collect.read_study(tmp_path, states)
    assert (once.digest, [run.id for run in once.runs]) == (by_threads.digest, [run.id for run in by_threads.runs])
