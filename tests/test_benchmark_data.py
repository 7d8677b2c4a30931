"""The benchmark of the data path runs and says what it measured; its times are not judged."""

from __future__ import annotations

import pytest

from benchmarks import data


@pytest.mark.slow
def test_small(capsys: pytest.CaptureFixture[str]) -> None:
    data.main(["--megabytes", "0.5", "--rounds", "1", "--batches", "1"])
    output = capsys.readouterr().out
    for row in ("scan for line starts", "this project's encoder", "1 process", "complete token cache", "new file"):
        assert f"| {row}" in output
