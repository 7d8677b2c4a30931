"""The GPU benchmark's code runs on a CPU, and a part that fails loses nothing of the others. No time is judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_parts

pytestmark = pytest.mark.slow  # each part trains or starts a process

QUICK = ["--device", "cpu", "--quick", "--threads", "1"]


@pytest.fixture(autouse=True)
def _restore_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def rows(part: str) -> list[dict[str, Any]]:
    found = list(gpu_parts.PARTS[part](gpu.parse([part, *QUICK, "--peak", "1e9"])))
    assert found == json.loads(json.dumps(found))
    assert not [row for row in found if "error" in row]
    return found


def test_every_part_has_a_budget() -> None:
    assert set(gpu_parts.PARTS) == set(gpu.BUDGETS)


def test_curves_agree_and_resume() -> None:
    found = rows("correctness")
    assert [row["name"] for row in found] == ["cpu, float32", "cpu, bfloat16", "cpu, bfloat16 recomputed"]
    assert all(row["within_tolerance"] and row["resumed_difference"] == 0 for row in found)
    assert found[0]["largest_difference"] == 0 < found[1]["largest_difference"] == found[2]["largest_difference"]
    assert found[0]["last_loss"] < found[0]["first_loss"] - 0.5


def test_heads_compute_the_same_loss() -> None:
    found = rows("head")
    assert {"Ablatrix", "torch, plain"} <= {row["name"] for row in found}
    assert all(row["ms"] > 0 and row["loss"] == pytest.approx(found[0]["loss"], abs=0.05) for row in found)


def test_batched_newton_schulz_is_the_same() -> None:
    found = rows("newton-schulz")
    assert [row["name"] for row in found] == ["gpt-nano, one by one", "gpt-nano, batched"]
    assert found[0]["largest_difference"] < 0.02


def test_steps() -> None:
    (row,) = rows("steps-nano")
    assert row["name"] == "Ablatrix, eager" and row["tokens_per_s"] > 0 and row["x_first"] == 1
    assert row["of_peak"] > 0 and row["peak_mib"] > 10


def test_runs_side_by_side() -> None:
    assert [row["name"] for row in rows("sharing")] == ["batch 2, 1 runs", "batch 2, 2 runs"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_part_that_fails_keeps_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu.collect("x", python("print('noise'); print('{\"a\": 1}', flush=True); raise SystemExit(3)"), 60)
    assert found == [{"part": "x", "a": 1}, {"part": "x", "error": "ended with exit code 3"}]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


def test_a_part_that_hangs_is_stopped() -> None:
    found = gpu.collect("x", ["sh", "-c", "echo '{\"a\": 1}'; exec sleep 600"], 3)
    assert found == [{"part": "x", "a": 1}, {"part": "x", "error": "stopped after 3 s"}]


def test_rows_become_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "command", lambda part, args, peak: python(f'print(\'{{"name": "{part}|{peak}"}}\')'))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.main(["head", "sharing", *QUICK, "--output", str(tmp_path / "rows")])
    assert [json.loads(line)["part"] for line in (tmp_path / "rows").read_text().splitlines()] == ["head", "sharing"]
    assert "## sharing\n\n| name        |" in capsys.readouterr().out
