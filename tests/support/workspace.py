"""A user's working folder: an experiment file, and commands run as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.rundir import loss_csv, run_files
from tests.support.waiting import PATIENCE

CELLS = ("baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on")

STUDY = """\
name: {name}
base:
  data: {{file_path: {corpus}, tokenizer: sample, block_size: 32, test_size: 6}}
  model: {{model_type: gpt-nano, n_layer: 1}}
  trainer: {{max_iters: {iters}, batch_size: 2, learning_rate: 3e-3, log_interval: 5, eval_interval: 10,
            eval_tokens: 2000, ckpt_interval: {ckpt}}}
  system: {{cache_dir: {cache}}}
features:
  swiglu: {{model.swiglu: true}}
  rmsnorm: {{model.rmsnorm: true}}
  rope: {{model.rope: true}}
  warmup: {{trainer.warmup_steps: 8}}
  cosine: {{trainer.use_cosine: true}}
slurm: {{time: "00:10:00", mem: 1G}}
"""
HELD_STEP = 40
HOLD = f"""\
import signal, time
from pathlib import Path

class Hold:
    \"\"\"Wait after step {HELD_STEP} for the file `go` in the working folder, or for a signal that stops the run.\"\"\"

    def on_batch_end(self, trainer):
        signals = signal.getsignal(signal.SIGUSR2).__self__
        while trainer.iter == {HELD_STEP} and signals.received is None and not Path("go").exists():
            time.sleep(0.05)
"""


@dataclass
class Workspace:
    """Runs commands in `folder`, with the code under test on PYTHONPATH and one thread."""

    folder: Path
    corpus: Path
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def write_study(
        self, name: str = "study", iters: int = 20, ckpt: int = 10, extra: str = "", held: bool = False
    ) -> Path:
        """Write an experiment file with seven cells and one seed, whose runs train in a second or two.

        held: runs wait after HELD_STEP until `release` is called or a signal stops them.
        """
        path = self.folder / f"{name}.yaml"
        values = {"name": name, "corpus": self.corpus, "cache": self.cache, "iters": iters, "ckpt": ckpt}
        text = STUDY.format(**values) + extra
        if held:
            text = text.replace("features:", "  callbacks: {custom: ['hold:Hold']}\nfeatures:")
            (self.folder / "hold.py").write_text(HOLD)
        path.write_text(text)
        return path

    def release(self) -> None:
        """Let held runs continue, in this and later attempts."""
        (self.folder / "go").touch()

    def run(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `python -m orchestrator WORDS`; fail unless the exit code is `code` (None: any)."""
        result = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env(),
            timeout=PATIENCE,
            check=False,
        )
        assert code is None or result.returncode == code, f"{words}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def command(self, *words: object) -> list[str]:
        return [self.python, "-m", "orchestrator", *map(str, words)]

    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1", **self.environment}

    def states(self, study: str = "study") -> dict[str, dict[str, Any]]:
        """Return cell -> what `status --json` prints about its run."""
        if not (self.folder / "out" / study / "study.json").exists():
            return {}
        record = json.loads(self.run("status", study, "--json").stdout)
        return {run["cell"]: run for run in record["runs"]}

    def wait(self, done: Callable[[dict[str, dict[str, Any]]], bool], study: str = "study") -> Any:
        """Return the states once `done(states)` is true; fail with them if that takes too long."""
        end = time.monotonic() + PATIENCE
        while True:
            asked = time.monotonic()
            states = self._forked_states(study) or self.states(study)
            if states and done(states):
                return states
            assert time.monotonic() < end, {cell: (s["state"], s["iter"], s["reason"]) for cell, s in states.items()}
            time.sleep(min(max(0.2, 5 * (time.monotonic() - asked)), 1.0))  # other tests need the cores too

    def _forked_states(self, study: str) -> dict[str, dict[str, Any]]:
        """Like `states`, but in a fork of this process, which saves half a second of imports; {} if that fails."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(self.folder)
                environment = self.env()
                os.environ.clear()
                os.environ.update(environment)
                scheduler = Scheduler()
                states = study_state.collect(study_dir.find_study(study, Path("out")), scheduler)
                with os.fdopen(writer, "w") as pipe:
                    pipe.write(json.dumps(run_state.as_record(states, scheduler.silent_since)))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(pid, 0)
        return {run["cell"]: run for run in json.loads(text)["runs"]} if text else {}

    def run_folder(self, cell: str, study: str = "study") -> Path:
        (folder,) = (self.folder / "out" / study).glob(f"{cell}-seed*")
        return folder

    def loss(self, cell: str, study: str = "study") -> list[list[str]]:
        """Return the rows of a run's loss.csv without the clock columns."""
        return without_clock(self.run_folder(cell, study))


def without_clock(run_dir: Path) -> list[list[str]]:
    """Return the rows of loss.csv, header first, without the clock columns."""
    kept = [i for i, name in enumerate(loss_csv.COLUMNS) if name not in loss_csv.CLOCK_COLUMNS]
    lines = (run_dir / run_files.LOSS).read_text().splitlines()
    return [[line.split(",")[i] for i in kept] for line in lines]
