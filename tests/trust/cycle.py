"""Everything that Ablatrix writes, once: caches warmed, runs of the trainer and of a command submitted, failed,
retried, rerun and reported, and job scripts for a scheduler that takes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.fake_slurm import FakeSlurm

TRAINED = """\
name: trained
base:
  data: {file_path: data/corpus.jsonl, tokenizer: small, block_size: 16, test_size: 4}
  model: {model_type: gpt-nano, n_layer: 1, n_head: 1, n_embd: 8}
  trainer: {max_iters: 3, batch_size: 2, log_interval: 1, eval_interval: 2, eval_tokens: 200, ckpt_interval: 2,
            save_best: true, sample_interval: 2, sample_prompt: "def"}
  callbacks: {jsonl: true, tensorboard: true}
  system: {cache_dir: cache}
features: {rope: {model.rope: true}}
slurm: {time: "00:10:00", mem: 1G, cpus_per_task: 1}
"""
COMMAND = """\
name: command
command: [python, script.py, "--out={run_dir}/files", "{flags}"]
workdir: .
metrics: {regex: ['step (?P<iter>\\d+) loss (?P<loss>\\S+)'], steps: 2}
base: {rate: 1}
features: {fast: {rate: 2}, faster: {rate: 3}}
design: [baseline, one_at_a_time]
slurm: {time: "00:10:00", mem: 1G, cpus_per_task: 1}
"""
SCRIPT = """\
import os, sys
if not os.path.exists("ready"):
    sys.exit("not ready")
for step in (1, 2):
    print("step", step, "loss", 3 - step, flush=True)
"""
SHORT = (
    ("submit", "command.yaml", "--launcher", "local", "--only", "baseline", "--retry"),
    ("touch", "ready"),
    ("submit", "command.yaml", "--launcher", "local", "--only", "baseline", "--retry"),
    ("submit", "command.yaml", "--launcher", "sbatch", "--only", "fast", "--retry", "--no-report"),
)


@dataclass
class Cycle:
    """The cycle in `folder`, as a user with this umask; its steps one by one."""

    folder: Path
    umask: int = 0o022
    path: str = ""  # folders before the rest of PYTHONPATH

    def prepare(self, tokenizer: Path, slurm: Path) -> None:
        """The user's own files; tokenizer: a folder with the files of one; slurm: for the stub scheduler."""
        self.tokenizer = tokenizer
        self.slurm = FakeSlurm(slurm)
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        source = Path(os.__file__).parent
        lines = [(source / name).read_text() for name in ("bisect.py", "heapq.py", "stat.py", "types.py", "queue.py")]
        corpus = "".join(json.dumps({"text": text[start : start + 400]}) + "\n" for text in lines for start in (0, 400))
        (self.folder / "data" / "corpus.jsonl").write_text(corpus)
        (self.folder / "trained.yaml").write_text(TRAINED)
        (self.folder / "command.yaml").write_text(COMMAND)
        (self.folder / "script.py").write_text(SCRIPT)

    def steps(self, short: bool = False) -> Iterator[tuple[str, ...]]:
        """The command lines, in order; `touch` stands for what the user does in between. short: the cheap ones."""
        if short:
            yield from SHORT
            return
        yield ("warm-cache", "--tokenizer", "small", "--from", str(self.tokenizer), "--cache-dir", "cache",
               "--tokens", "data/corpus.jsonl", "--workers", "1")  # fmt: skip
        yield from SHORT
        yield ("submit", "command.yaml", "--launcher", "submitit", "--only", "faster", "--retry", "--no-report")
        yield ("submit", "trained.yaml", "--launcher", "local", "--only", "baseline", "--retry")
        yield ("report", "command")
        yield ("submit", "command.yaml", "--launcher", "local", "--only", "baseline", "--rerun", "baseline")

    def run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """One step."""
        if words[0] == "touch":
            (self.folder / words[1]).touch()
            return subprocess.CompletedProcess(words, 0, "", "")
        python = os.pathsep.join(filter(None, [self.path, str(code_root())]))
        environ = {
            **os.environ,
            "PYTHONPATH": python,
            "OMP_NUM_THREADS": "1",
            "ABLATRIX_CLAIM_SECONDS": "0",
            "PATH": f"{self.slurm.bin}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=self.folder,
            env=environ,
            umask=self.umask,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def forget(self) -> None:
        """The user's folder as it was before anything was made."""
        for path in self.folder.iterdir():
            if path.name in ("out", "cache", "ready"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
