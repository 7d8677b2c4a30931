"""The benchmarks of planning, submitting and reporting run and print what they promise. No time is judged."""

from __future__ import annotations

import pytest

from benchmarks import report, scale


@pytest.mark.slow
def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    report.main(["--small", "--rows", "100"])
    assert capsys.readouterr().out.startswith("  12 runs of 100 rows: ")


@pytest.mark.slow
def test_scale(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--features", "4"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines[1:]]
    assert [row[1] for row in rows][1::2] == ["plan, 48 runs", "submit, 16 runs", "submit again, 16 runs"]
    # sbatch --test-only of the runs' script and of a helper job's, and one array; nothing is queued twice
    assert [row[4] for row in rows][3:] == ["3", "0", "0"]
    assert all(int(row[5]) <= 4 for row in rows)  # the queue is never asked for each run
