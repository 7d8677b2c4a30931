"""What a terminal of any width, and a pipe, show of the runs."""

import io
from pathlib import Path

import pytest

from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store.study_dir import StudyRun
from ablatrix.orchestrator.terminal import status_table, tables
from ablatrix.orchestrator.terminal.live import Pace
from ablatrix.orchestrator.terminal.printing import Terminal


def states(count: int, state: str = "done", cell: str = "baseline", reason: str = "") -> list[RunState]:
    runs = [StudyRun(f"{cell}-seed{i}-0123abcd", cell, i, [], {}, Path()) for i in range(1, count + 1)]
    values = {"iter": 200, "max_iters": 2000, "loss": 2.5, "val_loss": 2.25, "tokens_per_s": 12345.0, "job_id": "77_1"}
    return [RunState(run, state, reason, **values, node="node17") for run in runs]  # type: ignore[arg-type]


def shown(found: list[RunState], width: int | None, everything: bool = False) -> str:
    output = io.StringIO()
    console = Terminal(file=output, width=width or 180, force_terminal=width is not None, color_system=None)
    status_table.print_states(found, "out/study", console, everything=everything)
    return output.getvalue()


@pytest.mark.parametrize("width", [100, 80, 60, 45, 30])
@pytest.mark.parametrize("cell", ["baseline", "a_cell_with_quite_a_long_name"])
def test_run_and_state_are_never_cut(width: int, cell: str) -> None:
    text = shown(states(2, "failed", cell, "exit code 1: no such file " + "x" * 90), width)
    assert all(len(line) <= width for line in text.splitlines())
    whole = text.replace("\n", "") if width < 45 else text
    assert whole.count(f"{cell}-seed1-0123abcd") >= 1 and whole.count("failed") == 2
    assert "".join(text.split()).replace("│", "").count("x") >= 2 * 90, "the reason is whole"


def test_empty_columns_go_first_then_less_important_ones() -> None:
    wide, narrow = shown(states(1, "running"), 180), shown(states(1, "running"), 80)
    assert all(name in wide for name in ("tokens/s", "node", "job", "held-out")) and "why" not in wide
    assert "step" in narrow and "held-out" in narrow and "tokens/s" not in narrow


def test_a_pipe_gets_every_run_on_a_line_of_its_own_uncut() -> None:
    found = states(300) + states(2, "failed", "swiglu", "exit code 1:\n" + "y" * 500)
    lines = shown(found, None).splitlines()
    assert len(lines) == 2 + 302
    assert lines[1].split() == ["run", "state", "step", "loss", "held-out", "tokens/s", "job", "why"]
    assert lines[-1].split()[:2] == ["swiglu-seed2-0123abcd", "failed"] and lines[-1].endswith("y" * 500)


def test_what_is_done_folds_per_cell_in_a_large_study() -> None:
    found = states(80) + states(3, "failed", "swiglu", "boom")
    text = shown(found, 100)
    assert "baseline (80 runs)" in text and text.count("swiglu-seed") == 3
    assert shown(found, 100, everything=True).count("baseline-seed") == 80
    many = [state for i in range(400) for state in states(1, "done", f"c{i}")] + states(1, "lost", "last", "gone")
    assert "and 201 more rows" in shown(many, 100) and "last-seed1" in shown(many, 100)


def test_durations() -> None:
    assert [status_table.format_duration(s) for s in (3723, 63, None, float("inf"))] == ["1:02:03", "1:03", "", ""]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_cell_of_a_table_is_cut(width: int) -> None:
    names = ("cell", "overrides", "empty", "interval", "folder of the first")
    rows = [
        dict(zip(names, (name, "model.rope=true", "", "-0.0512 to -0.0401", f"{name}-seed1-0123abcd"), strict=True))
        for name in ("baseline", "a_feature_with_a_long_name")
    ]
    output = io.StringIO()
    console = Terminal(width=width, file=output, force_terminal=True, color_system=None)
    layout = tables.Layout(wrapped=("overrides",), dropped_first=("folder of the first", "interval"))
    tables.print_table("t", rows, console, layout)
    text = output.getvalue()
    assert "a_feature_with_a_long_name" in text and "model.rope=true" in text and "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "empty" not in text and ("a_feature_with_a_long_name-seed1-0123abcd" in text) == (width == 200)
    assert ("-0.0512 to -0.0401" in text) == (width >= 80)


def test_the_time_left_follows_the_pace_since_the_first_look() -> None:
    pace = Pace()
    begun = [*states(1), *states(2, "running"), *states(2, "queued")]  # a tenth of each open run is done
    assert pace.time_left(begun, 100.0) is None
    assert pace.time_left(begun, 130.0) is None, "nothing has been done yet"
    later = [*states(2), *states(1, "running"), *states(2, "queued")]
    assert pace.time_left(later, 190.0) == pytest.approx(90 * 2.7 / 0.9)
    more = [*states(2), *states(1, "running"), *states(5, "queued")]
    assert pace.time_left(more, 200.0) == pytest.approx(100 * 5.4 / 0.9), "a later stage queues more runs"
    assert pace.time_left(states(5), 400.0) is None, "all have ended"
