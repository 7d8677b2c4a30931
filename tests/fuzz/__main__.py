"""Every target in a process of its own for its share of the time; one line each; exit code 1 where one crashed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import targets

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / ".fuzz"  # inputs that crashed, and with --keep the corpus


@dataclass(frozen=True)
class Outcome:
    """What came of fuzzing a target. crash: the saved input, or what libFuzzer said where there is none."""

    name: str
    executions: int
    edges: int
    crash: str
    words: str

    def __str__(self) -> str:
        line = f"{self.name:<12} {self.executions:>9,} executions {self.edges:>6,} edges  "
        return line + (f"CRASH {self.crash}" if self.crash else "0 crashes")


def fuzz(name: str, seconds: float, seed: int, saved: Path) -> Outcome:
    """Run a target for some seconds, from its seeds and from what --keep has kept."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        kept = saved / "corpus" / name
        shutil.copytree(kept, corpus) if kept.is_dir() else corpus.mkdir()
        for number, content in enumerate(targets.TARGETS[name].seeds()):
            (corpus / f"seed-{number}").write_bytes(content)
        crashes = saved / "crashes"
        crashes.mkdir(parents=True, exist_ok=True)
        before = set(crashes.iterdir())
        options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", f"-artifact_prefix={crashes}/{name}-"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, str(corpus), *options, "-print_final_stats=1"],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        if kept.is_dir():
            shutil.copytree(corpus, kept, dirs_exist_ok=True)
        made = sorted(path.name for path in set(crashes.iterdir()) - before)
    words = done.stdout + done.stderr
    executions = re.search(r"number_of_executed_units: (\d+)", words)
    edges = re.findall(r"cov: (\d+)", words)
    crash = str(crashes / made[0]) if made else f"exit code {done.returncode}" if done.returncode else ""
    return Outcome(name, int(executions[1]) if executions else 0, int(edges[-1]) if edges else 0, crash, words)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for all targets together, on each of --jobs cores")
    parser.add_argument("--target", action="append", choices=[*targets.TARGETS], help="only this one (repeatable)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="targets side by side")
    parser.add_argument(
        "--keep", action="store_true", help=f"go on from the corpus in {SAVED.name}/, and keep it there"
    )
    parser.add_argument("--saved", type=Path, default=SAVED, metavar="DIR", help=f"default: {SAVED.name}/")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run the one --target on this input, no fuzzing")
    given = parser.parse_args()
    names = given.target or [*targets.TARGETS]
    if given.reproduce:
        targets.TARGETS[names[0]].run(given.reproduce.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.exit(
            "error: atheris is not installed; it has wheels for Linux on x86-64: pip install -r requirements-dev.txt"
        )
    if given.keep:
        for name in names:
            (given.saved / "corpus" / name).mkdir(parents=True, exist_ok=True)
    share = given.seconds * given.jobs / len(names)
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = list(pool.map(lambda name: fuzz(name, share, given.seed, given.saved.resolve()), names))
    for outcome in outcomes:
        print(outcome, flush=True)
        if outcome.crash:
            print(outcome.words[-4000:], file=sys.stderr)
    crashes = sum(bool(outcome.crash) for outcome in outcomes)
    print(f"{sum(outcome.executions for outcome in outcomes):,} executions, {crashes} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
