"""Golden files: what users see, byte for byte, so that the code behind it can be moved and rewritten.

tests/golden/ holds the expected text and the two experiment files that it comes from. After an intended change, renew
it with `GOLDEN_UPDATE=1 python -m pytest tests/test_golden.py` and review `git diff tests/golden`.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from typer import rich_utils
from typer.main import get_group
from typer.testing import CliRunner

from ablatrix.orchestrator.cli import app
from ablatrix.orchestrator.report.build import build
from tests.support.studies import Plan, write_study

pytestmark = pytest.mark.xdist_group("golden")

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
RENEW = "GOLDEN_UPDATE=1 python -m pytest tests/test_golden.py"
WIDTH = "100"
FLOAT = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
VOLATILE = ("time", "host", "pid", "born", "token", "peak_memory_bytes")  # fields of events.jsonl
PLANS = {
    "plan.json": "study.yaml --format json --launcher local",
    "plan_command.json": "command.yaml --format json --launcher local",
    "plan_sbatch.sh": "study.yaml --sbatch --launcher sbatch",
    "plan_submitit.sh": "study.yaml --sbatch --launcher submitit",
}


def compare(name: str, text: str, floats: bool = False) -> None:
    """Fail with a diff unless golden file `name` holds `text`; with GOLDEN_UPDATE set, rewrite the file instead.

    floats: accept decimals within a relative 1e-4, as their last digits depend on the processor.
    """
    path = GOLDEN / name
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    if text == expected or (floats and close(text, expected)):
        return
    if os.environ.get("GOLDEN_UPDATE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
    pytest.fail("\n".join([f"{name} changed; if this is intended, renew it with: {RENEW}", *diff]), pytrace=False)


def close(one: str, other: str) -> bool:
    """True if the texts differ in nothing but the last digits of their decimals."""
    pairs = zip(FLOAT.findall(one), FLOAT.findall(other), strict=False)
    alike = all(math.isclose(float(a), float(b), rel_tol=1e-4) for a, b in pairs)
    return alike and FLOAT.sub("#", one) == FLOAT.sub("#", other)


def normalize(text: str, folder: Path) -> str:
    """Replace the two paths that vary between machines: the interpreter's and the working folder's."""
    for path, name in ((sys.executable, "PYTHON"), (str(folder), "/FOLDER")):
        text = text.replace(shlex.quote(path), name).replace(path, name)
    return text


def run(folder: Path, *words: str) -> str:
    """Return what `ablatrix WORDS` prints in `folder`, in an environment that is the same everywhere.

    PATH has no Slurm but an empty `srun`, without which submitit refuses to write scripts.
    """
    environment = {"PATH": str(folder / "bin"), "HOME": str(folder), "PYTHONPATH": str(folder / "code")}
    environment |= {"COLUMNS": WIDTH, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "TZ": "UTC"}
    command = [sys.executable, "-m", "orchestrator", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return normalize(done.stdout, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder: two studies, multiplication tables as the corpus, a tokenizer with a token for every byte."""
    folder = tmp_path_factory.mktemp("golden")
    for study in ("study.yaml", "command.yaml"):
        (folder / study).write_text((GOLDEN / study).read_text())
    tables = (" ".join(f"{k} times {j} is {k * j}." for j in range(40)) for k in range(30))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": table}) + "\n" for table in tables))
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>"])}
    (folder / "letters").mkdir()
    (folder / "letters" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "letters" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").touch(0o755)
    (folder / "code").symlink_to(ROOT)
    run(folder, "warm-cache", "--tokenizer", "letters", "--from", "letters", "--cache-dir", "cache")
    return folder


def test_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ablatrix"])
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", None)  # else $TERMINAL_WIDTH, as it was at import
    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", False)  # GITHUB_ACTIONS and FORCE_COLOR set it
    monkeypatch.delenv("ABLATRIX_CACHE", raising=False)
    text = ""
    for words in (["--help"], *([verb, "--help"] for verb in get_group(app).commands)):
        result = CliRunner().invoke(app, words, prog_name="ablatrix", env={"COLUMNS": WIDTH, "NO_COLOR": "1"})
        assert result.exit_code == 0, result.output
        text += f"$ ablatrix {' '.join(words)}\n" + "".join(f"{line.rstrip()}\n" for line in result.output.splitlines())
    compare("help.txt", text)


@pytest.mark.parametrize("name", PLANS)
def test_plan(folder: Path, name: str) -> None:
    compare(name, run(folder, "plan", *PLANS[name].split()))


@pytest.mark.slow
def test_run(folder: Path) -> None:
    """The files of one run after the whole study has run on this machine; what tells of the clock is left out."""
    run(folder, "submit", "study.yaml", "--launcher", "local")
    (run_dir,) = (folder / "out" / "golden").glob("wide-seed2-*")
    files = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())
    compare("run/files.txt", "".join(f"{file}\n" for file in files))
    compare("run/config.json", normalize((run_dir / "config.json").read_text(), folder))
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    fixed = [{name: "*" if name in VOLATILE else value for name, value in event.items()} for event in events]
    compare("run/events.jsonl", "".join(json.dumps(event) + "\n" for event in fixed))
    rows = [line.split(",") for line in (run_dir / "loss.csv").read_text().splitlines()]
    kept = [i for i, column in enumerate(rows[0]) if column not in ("dt", "seconds")]
    compare("run/loss.csv", "".join(",".join(row[i] for i in kept) + "\n" for row in rows), floats=True)


@pytest.mark.slow
def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report on made-up losses, with a run of every fate in it."""
    monkeypatch.chdir(tmp_path)
    fates = {("swiglu", 3): "failed", ("rope", 1): "diverged", ("warmup", 2): "lost", ("warmup", 3): "running"}
    features = {"swiglu": {"model.swiglu": True}, "rope": {"model.rope": True}, "warmup": {"trainer.warmup_steps": 20}}
    plan = Plan(features=features, effects={"swiglu": -0.2, "rope": 0.1}, fates=fates, domains=["code", "prose"], rng=1)
    build(folder := Path("planted"), write_study(folder, plan))
    for name in ("report.md", "comparison.tex", "summary.csv", "comparison.csv"):
        text = (folder / "report" / name).read_text(encoding="utf-8")
        compare(f"report/{name}", normalize(text, tmp_path), floats=name.endswith(".csv"))
