"""The step and start-up benchmarks run and print what they promise. No time is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import contest, profile, startup, step

STEP = [
    *("nano1", "--rounds", "2", "--seconds", "0.01", "--block", "16", "--vocab", "200"),
    *("--threads", "1", "--peak-size", "64"),
]

# the parts of minGPT's interface that the benchmark uses, doing nothing
FAKE_MODEL = """
class GPT:
    def __init__(self, config):
        self.config = config
    @staticmethod
    def get_default_config():
        from types import SimpleNamespace
        return SimpleNamespace()
"""
FAKE_TRAINER = """
class Trainer:
    device = "cpu"
    def __init__(self, config, model, data):
        assert data[3][0].shape == (16,) and model.config.model_type == "gpt-nano"
    @staticmethod
    def get_default_config():
        from types import SimpleNamespace
        return SimpleNamespace()
    def set_callback(self, event, callback):
        self.callback = callback
    def run(self):
        print("running on device cpu")
        while True:
            self.callback(self)
"""


@pytest.mark.slow
def test_table_against_a_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mingpt").mkdir()
    (tmp_path / "mingpt" / "model.py").write_text(FAKE_MODEL)
    (tmp_path / "mingpt" / "trainer.py").write_text(FAKE_TRAINER)
    step.main([*STEP, "--peer", str(tmp_path), "--dtype", "float32", "--toggle", "swiglu"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == [
        "gpt-nano, batch 1, float32",
        "Ablatrix, eager",
        "Ablatrix, swiglu",
        "minGPT",
    ]
    speeds = [float(row[2].replace(",", "")) for row in rows[1:]]
    assert speeds[2] > speeds[0] > 0 and speeds[1] > 0  # doing nothing is faster
    assert float(rows[1][4]) == 1.0 and float(rows[3][4]) < 1.0
    assert all(float(row[5].replace(",", "")) > 10 for row in rows[1:])


@pytest.mark.slow
def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    profile.main([*STEP])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    milliseconds = {row[1].strip(): float(row[2].replace(",", "")) for row in rows}
    assert list(milliseconds)[-1] == "the step" and min(milliseconds.values()) > 0
    assert milliseconds.pop("the step") == pytest.approx(sum(milliseconds.values()), abs=0.5)


def test_unknown_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["nano2"])
    assert "unknown case nano2; known: nano1, nano8, mini8, gpt2" in capsys.readouterr().err


def test_ratio_is_the_median_over_rounds() -> None:
    assert contest.ratio([1.0, 2.0, 1.0], [2.0, 6.0, 50.0]) == 3.0


@pytest.mark.slow
def test_startup(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--rounds", "1", "--threads", "1"])
    out = capsys.readouterr().out
    assert "| python -c 'import torch'" in out and "| Ablatrix" in out
    assert sys.executable not in out
