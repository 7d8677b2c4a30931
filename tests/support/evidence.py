"""Counts of the cases behind each promise, printed as one table at the end of a test session.

A test takes the fixture `tally` and calls `tally("what is promised", cases=N)` after its assertions. N comes from the
fixture `cases`: a sample in every test run, all cases with `--full` (`make trust`). Random draws are seeded by the
fixture `seed` (`--seed`), so that anyone can repeat them or draw others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

Tally = Callable[..., None]
Cases = Callable[[int, int], int]

GUARANTEES = Path(__file__).parents[2] / "docs" / "guarantees.md"
NAME = "evidence"  # of a test report's property, which pytest-xdist transfers from its workers


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ablatrix")
    group.addoption("--full", action="store_true", help="every case of the tests of promises, not a sample")
    group.addoption("--seed", type=int, default=1, help="seed of the random cases and faults (default: 1)")
    group.addoption("--soak", type=int, metavar="RUNS", help="runs of tests/trust/test_soak.py (make soak: 1000)")


def pytest_configure(config: pytest.Config) -> None:
    """Make hypothesis follow --seed too; each test sets its number of examples."""
    hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("tests")
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)


@pytest.hookimpl(tryfirst=True)  # run before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in files named in docs/guarantees.md with `trust`."""
    named = {GUARANTEES.parents[1] / path for path in re.findall(r"`(tests/[\w/.]+)`", GUARANTEES.read_text("utf-8"))}
    for item in items:
        if item.path in named or item.path.parent in named:
            item.add_marker("trust")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed for what a test draws at random."""
    return int(request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Cases:
    """Return `cases(sample, full)`, which returns how many cases to try."""
    full = request.config.getoption("--full")
    return lambda sample, whole: whole if full else sample


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Return `tally(promise, cases, detail="")`, which adds a row to the table; call it after the assertions."""

    def count(promise: str, cases: int, detail: str = "") -> None:
        request.node.user_properties.append((NAME, {"promise": promise, "cases": cases, "detail": detail}))

    return count


def rows(reports: list[Any]) -> list[tuple[str, str, str, str, str]]:
    """Return (promise, state, cases, seconds, detail) of each promise, and of each failed test without a tally."""
    found: dict[tuple[str, str, str], tuple[int, float]] = {}
    for report in reports:
        tallies = [value for name, value in getattr(report, "user_properties", ()) if name == NAME]
        if report.failed and "trust" in getattr(report, "keywords", ()) and not tallies:
            tallies = [{"promise": report.nodeid, "cases": 0, "detail": ""}]
        state = "BROKEN" if report.failed else "kept"
        seconds = getattr(report, "duration", 0.0)  # missing if the file could not be imported
        for row in tallies:
            key = (row["promise"], state, row["detail"])
            cases, spent = found.get(key, (0, 0.0))
            found[key] = (cases + row["cases"], spent + seconds)
    return sorted((name, state, f"{n:,}", f"{spent:.0f}", more) for (name, state, more), (n, spent) in found.items())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table if anything was counted."""
    stats = terminalreporter.stats
    reports = [report for key in ("passed", "failed", "error") for report in stats.get(key, [])]
    table = rows([report for report in reports if report.when == "call" or report.failed])
    if not table:
        return
    whole = config.getoption("--full") or config.getoption("--soak")
    extent = "all cases" if whole else "a sample; all cases: make trust"
    terminalreporter.section(f"what was shown ({extent}; seed {config.getoption('--seed')})")
    header = ("promise", "state", "cases", "s", "detail")
    widths = [max(len(row[column]) for row in [header, *table]) for column in range(4)]
    for row in [header, *table]:
        promise, state, count, seconds, detail = row
        line = f"{promise:<{widths[0]}}  {state:<{widths[1]}}  {count:>{widths[2]}}  {seconds:>{widths[3]}}  {detail}"
        terminalreporter.write_line(line.rstrip())
