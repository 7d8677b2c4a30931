"""docs/guarantees.md names modules and tests that exist."""

import re

from ablatrix.orchestrator.store.code_snapshot import code_root

PAGE = code_root() / "docs" / "guarantees.md"


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:orchestrator|trainer|models|tests|tools)/[\w/.]+)`", PAGE.read_text())
    assert len(paths) > 50
    assert not [path for path in paths if not (code_root() / path).exists()]


def test_every_guarantee_has_a_test() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| how it is kept |" not in line
    ]
    assert rows
    for row in rows:
        *_, shown_by = row.strip("|").split(" | ")
        assert "`tests/" in shown_by, row
