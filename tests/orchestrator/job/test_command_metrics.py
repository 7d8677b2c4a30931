"""Numbers as trainers leave them: half lines, restarts, nonsense; what is read is what was written."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatrix.orchestrator.job import number_formats
from ablatrix.orchestrator.job.metric_parsers import make_parser
from ablatrix.orchestrator.job.metric_readers import LineReader, make_reader
from ablatrix.orchestrator.job.metric_series import MetricSeries
from ablatrix.orchestrator.study import command_template
from ablatrix.orchestrator.study.command_template import are_labelled
from ablatrix.trainer.rundir import loss_csv

PATTERNS = [r"iter (?P<iter>\d+): loss (?P<loss>\S+)", r"step (?P<iter>\d+): .*val loss (?P<val_loss>\S+)"]


def read(path: Path, kind: str, columns: dict[str, str] | None = None, final: bool = True) -> MetricSeries:
    series = MetricSeries()
    for found in LineReader(path, make_parser(kind, columns or {}, PATTERNS)).read(final):
        series.add(found)
    return series


def cells(series: MetricSeries, name: str = "loss") -> dict[int, float]:
    return {step: row[name] for step, row in series.ordered() if name in row}


@pytest.mark.parametrize(
    ("kind", "columns", "text"),
    [
        ("csv", {}, "step,train_loss,val_loss\n1,3.5,\n2,3.25,\n2,,3.4\n"),
        ("csv", {"iter": "n", "loss": "a b", "val_loss": "v"}, 'x,n,"a b",v\r\n"x,y",1,3.5,\r\nx,2,3.25,3.4\r\n'),
        ("csv", {}, "step\tloss\tval_loss\n1\t3.5\t\n2\t3.25\t3.4\n"),
        ("jsonl", {}, '{"step": 1, "loss": 3.5}\n[1]\n{"step": 2, "loss": 3.25, "val_loss": 3.4}\n{"step": 3}\n'),
        ("jsonl", {"loss": "train.loss"}, '{"step": 1, "train": {"loss": 3.5}}\n{"step": 2, "train.loss": "3.25"}\n'
                                          '{"step": 2.0, "val_loss": 3.4}\n'),
        ("regex", {}, "\x1b[1mhello\niter 1: loss 3.5\riter 2: loss 3.25\nstep 2: train loss 1, val loss 3.4"),
    ],
)  # fmt: skip
def test_every_kind_says_the_same(tmp_path: Path, kind: str, columns: dict[str, str], text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text.encode())
    series = read(path, kind, columns)
    assert cells(series) == {1: 3.5, 2: 3.25}
    assert cells(series, "val_loss") == {2: 3.4}
    assert series.headline() == ("val_loss", 3.4, 2)


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LineReader(path, make_parser("regex", {}, PATTERNS))
    series = MetricSeries()

    def look() -> dict[int, float]:
        for found in reader.read():
            series.add(found)
        return cells(series)

    assert look() == {}
    path.write_text("iter 1: loss 3.5\niter 2: loss 3.")
    assert look() == {1: 3.5}
    with path.open("a") as file:
        file.write("25\n")
    assert look() == {1: 3.5, 2: 3.25}
    path.write_text("iter 1: loss 9.0\niter 2: loss 8.0\niter 3: loss 7.0\n")
    assert look() == {1: 9.0, 2: 8.0, 3: 7.0}, "rewritten"


def test_a_restart_drops_what_comes_after_it() -> None:
    series = MetricSeries()
    for step in (10, 20, 30, 40):
        series.add({"iter": step, "loss": step})
    series.restart()
    for step in (25, 30):
        series.add({"iter": step, "loss": -step})
    assert cells(series) == {10: 10, 20: 20, 25: -25, 30: -30}
    series.add({"iter": 10, "val_loss": 1})
    assert list(cells(series)) == [10, 20, 25, 30], "an evaluation of an older step is no restart"
    again = MetricSeries()
    again.load(series.to_csv())
    assert again.to_csv() == series.to_csv()


def test_what_is_no_number_is_left_out_and_counted() -> None:
    series = MetricSeries()
    for step, loss in (("1", "3.5"), ("x", "3"), ("2.5", "3"), ("2", "abc"), ("-1", "2"), ("inf", "2"), (None, "1")):
        series.add({"iter": step, "loss": loss})
    series.add({"iter": "3", "loss": "nan"})
    assert list(cells(series)) == [1, 3]
    assert math.isnan(cells(series)[3])
    assert series.bad == 6
    assert [row[0] for row in loss_csv.parse_rows(series.to_csv())] == ["1", "3"]


def test_the_headline_without_a_held_out_loss_is_no_single_batch() -> None:
    series = MetricSeries()
    for step in range(1, 101):
        series.add({"iter": step, "loss": 100 - step})
    assert series.headline() == ("loss", sum(range(10)) / 10, 100)
    assert MetricSeries().headline() is None


def test_time_comes_from_the_trainer_or_else_from_our_clock() -> None:
    shown, seen = MetricSeries(), MetricSeries()
    for step in (1, 2, 4):
        shown.add({"iter": step, "loss": 1, "dt_ms": 500}, clock=99)
        seen.add({"iter": step, "loss": 1}, clock=step * 3)
    assert [row["seconds"] for _, row in shown.complete()] == [0.5, 1.0, 2.0]
    assert [(row["seconds"], row.get("dt")) for _, row in seen.complete()] == [(3, None), (6, 3), (12, 3)]
    assert [row["tokens"] for _, row in seen.complete(100)] == [100, 200, 400]


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(allow_nan=False)), max_size=60), st.randoms())
def test_however_the_file_grows(rows: list[tuple[int, float]], rng: random.Random) -> None:
    """Read in any pieces, and by readers that take over from each other, a file says what it says at once."""
    text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows)
    whole = MetricSeries()
    for step, loss in rows:
        whole.add({"iter": step, "loss": loss})
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        series, data, written = MetricSeries(), text.encode(), 0
        reader = LineReader(path, make_parser("jsonl", {}, ()))
        while written < len(data):
            size = rng.randint(1, 80)
            with path.open("ab") as file:
                file.write(data[written : written + size])
            written += size
            if rng.random() < 0.2:
                mark = reader.position()
                reader = LineReader(path, make_parser("jsonl", {}, ()))
                reader.resume(mark)
            for found in reader.read():
                series.add(found)
    assert series.to_csv() == whole.to_csv()


@pytest.mark.parametrize(
    "line",
    [
        "\x1b[32miter 1\x1b[0m: loss \x1b[1m3.5\x1b[0m\n",
        "\x1b[38;2;10;20;30miter\x1b[0;39m 1: loss 3.5\x1b[K\n",
        "\x1b]0;title\x07iter 1: \x1b(Bloss 3.5\x1b[m\n",
        "\x1b]8;;http://x\x1b\\iter 1: loss\x1b]8;;\x1b\\ 3.5\n",
        "10%|#  | 1/9 \x1b[A\riter 1: loss 3.5\n",
        "12/100\b\b\b\b\b\biter 1: loss 3.5\n",
        "\ufeffiter 1: loss 3.5\r\n",
    ],
)
def test_colors_and_progress_bars_do_not_hide_numbers(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_bytes(line.encode())
    assert cells(read(tmp_path / "log", "regex")) == {1: 3.5}


@pytest.mark.parametrize(
    ("text", "whole", "value"),
    [("1,234", True, 1234), ("1,234,567", False, 1234567), ("1,234.5", False, 1234.5), ("3,14", False, 3.14),
     ("2,345", False, 2.345), ("1_000", True, 1000), ("1e3", True, 1000),
     ("85.3%", False, 85.3), ("85 %", False, 85),
     ("tensor(2.5, device='cuda:0')", False, 2.5), ("tensor(2.5,", False, 2.5), ("tensor([2.5])", False, 2.5),
     ("np.float32(2.5)", False, 2.5), ("2.5,", False, 2.5), ("[2.5]", False, 2.5),
     ("2.5)", False, 2.5), ("5/100", True, 5),
     ("-inf", False, -math.inf), ("-1e-05", False, -1e-05),
     ("1.2.3", False, None), ("n/a", False, None), ("", False, None)],
)  # fmt: skip
def test_numbers_as_programs_print_them(text: str, whole: bool, value: float | None) -> None:
    assert number_formats.parse(text, whole) == value


def test_nan_is_a_number() -> None:
    assert math.isnan(number_formats.parse("NaN") or 0)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffstep;loss;val_loss\n1;3,5;\n2;3,25;3,4\n",
        "step, loss, val_loss\n1, 3.5,\n2, 3.25, 3.4\n",
        "# step loss val_loss\n1 3.5 nan\n2 3.25 3.4\n",
        '"step"\t"loss"\t"val_loss"\n1\t3.5\t\n2\t3.25\t3.4\n',
        "epoch,lr-AdamW,step,train_loss_step,val_loss\n0,0.1,,,\n0,,1,3.5,\n0,,2,3.25,\n0,,2,,3.4\n",
    ],
)
def test_csv_files_of_all_kinds(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    series = read(tmp_path / "m.csv", "csv")
    assert cells(series) == {1: 3.5, 2: 3.25}
    assert cells(series, "val_loss")[2] == 3.4


def test_rows_of_another_width_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n1,3.5\n2,3.25,9\n\n3,3.0\n")
    series = read(tmp_path / "m.csv", "csv")
    assert (cells(series), series.bad) == ({1: 3.5, 3: 3.0}, 1)


def test_a_csv_file_that_gets_a_column_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    reader, series = LineReader(path, make_parser("csv", {}, [])), MetricSeries()
    for text in ("step,loss\n1,3.5\n2,3.25\n", "step,loss,val_loss\n1,3.5,\n2,3.25,\n2,,3.4\n"):
        path.write_text(text)
        for found in reader.read():
            series.add(found)
    assert (cells(series), cells(series, "val_loss")) == ({1: 3.5, 2: 3.25}, {2: 3.4})


def test_a_json_document_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    source = {"kind": "jsonl", "path": str(path), "columns": {}, "patterns": []}
    reader, series = make_reader(source), MetricSeries()
    history = [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 3.25, "epoch": 0.5}, {"step": 2, "eval_loss": 3.4}]
    for length in (1, 3):
        path.write_text(json.dumps({"best_metric": None, "log_history": history[:length]}, indent=2))
        for found in reader.read():
            series.add(found)
    assert (cells(series), cells(series, "val_loss")) == ({1: 3.5, 2: 3.25}, {2: 3.4})


@pytest.mark.parametrize(
    "prefix", ["[default{}]:", "[1,{}]<stdout>: ", "[rank{}]: ", "rank {}: ", "(RANK={}) ", "Rank{} | "]
)
def test_the_loss_of_rank_0_counts(tmp_path: Path, prefix: str) -> None:
    lines = [f"{prefix.format(rank)}iter {step}: loss {step + rank}" for step in (1, 2) for rank in (0, 1, 2)]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert cells(read(tmp_path / "log", "regex")) == {1: 1, 2: 2}


@pytest.mark.parametrize(
    ("command", "losses"),
    [
        ("srun --label -n 2 python t.py", {1: 1, 2: 2}),
        ("bash -c 'srun -n 2 -l python t.py'", {1: 1, 2: 2}),
        ("srun -n 2 python t.py --labels 3", {1: 2, 2: 3}),
    ],
)
def test_a_number_before_a_line_is_a_rank_where_srun_labels(
    tmp_path: Path, command: str, losses: dict[int, float]
) -> None:
    (tmp_path / "log").write_text("".join(f"{r}: iter {s}: loss {s + r}\n" for s in (1, 2) for r in (0, 1)))
    parser = make_parser("regex", {}, PATTERNS, are_labelled(command_template.split(command)))
    series = MetricSeries()
    for found in LineReader(tmp_path / "log", parser).read(final=True):
        series.add(found)
    assert cells(series) == losses


def test_steps_that_restart_with_each_epoch(tmp_path: Path) -> None:
    def add(series: MetricSeries, epochs: range) -> None:
        for epoch in epochs:
            for step in (0, 10, 20):
                series.add({"epoch": epoch, "iter": step, "loss": epoch + step / 100})

    series = MetricSeries()
    add(series, range(3))
    assert list(cells(series)) == [0, 10, 20, 30, 40, 50, 60, 70, 80] and not series.resets
    resumed = MetricSeries()
    resumed.load(series.to_csv())
    resumed.resume(json.loads(json.dumps(series.position())))
    resumed.restart()
    add(resumed, range(1, 4))
    assert list(cells(resumed)) == [*range(0, 120, 10)]
    counted = MetricSeries()
    for epoch in range(2):
        for step in (100, 200):
            counted.add({"epoch": epoch, "iter": epoch * 200 + step, "loss": 1})
    assert list(cells(counted)) == [100, 200, 300, 400], "counted through"


def test_steps_that_begin_again_are_noticed() -> None:
    series = MetricSeries()
    for step in (1, 2, 3, 1, 2, 3):
        series.add({"iter": step, "loss": step})
    series.add({"iter": 1, "val_loss": 3})
    assert series.resets == 1


def test_a_step_with_two_losses_is_noticed() -> None:
    series = MetricSeries()
    for step in (1, 2):
        for rank in (0, 1):
            series.add({"iter": step, "loss": step + rank / 10})
    series.add({"iter": 2, "loss": 2.1})
    assert (series.repeated, series.resets) == ({1, 2}, 0)


def test_a_resume_that_counts_from_zero_is_noticed() -> None:
    series = MetricSeries()
    for step in (1, 2, 3):
        series.add({"iter": step, "loss": step})
    series.restart()
    series.add({"iter": 1, "loss": 9})
    assert series.replaced and cells(series) == {1: 9}
