"""All that a whole cycle writes: opened without following links, with the modes that the umask gives.

An audit hook in every process writes down what is opened, made or renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.evidence import Tally
from tests.support.fake_slurm import FakeSlurm
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("written files")]

HOOK = """\
import os, sys
base, log = {below!r}, os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PLACES = {{"open": 0, "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}}

def hook(event, args):
    place = PLACES.get(event)
    if place is None or not isinstance(args[place], (str, bytes, os.PathLike)):
        return
    flags = args[2] if event == "open" else 0
    if event == "open" and not flags & WRITING:
        return
    path = os.path.abspath(os.fsdecode(args[place]))
    if path.startswith(base):
        import json
        caller = sys._getframe(1).f_code
        os.write(log, (json.dumps([event, path, flags, caller.co_filename]) + "\\n").encode())

sys.addaudithook(hook)
"""
TRAINED = """\
name: trained
base:
  data: {file_path: data/corpus.jsonl, tokenizer: small, block_size: 16, test_size: 4}
  model: {model_type: gpt-nano, n_layer: 1, n_head: 1, n_embd: 8}
  trainer: {max_iters: 3, batch_size: 2, log_interval: 1, eval_interval: 2, eval_tokens: 200, ckpt_interval: 2,
            save_best: true, sample_interval: 2, sample_prompt: "def"}
  callbacks: {jsonl: true}
  system: {cache_dir: cache}
features: {rope: {model.rope: true}}
slurm: {time: "00:10:00", mem: 1G, cpus_per_task: 1}
"""
COMMAND = """\
name: command
command: [python, script.py, "--out={run_dir}/files", "{flags}"]
metrics: {regex: ['step (?P<iter>\\d+) loss (?P<loss>\\S+)'], steps: 2}
base: {rate: 1}
features: {fast: {rate: 2}, faster: {rate: 3}}
design: [baseline, one_at_a_time]
slurm: {time: "00:10:00", mem: 1G, cpus_per_task: 1}
"""
SCRIPT = """\
for step in (1, 2):
    print("step", step, "loss", 3 - step, flush=True)
"""
ONE_RUN = ("--launcher", "local", "--only", "baseline")
CYCLE = (
    ("warm-cache", "--tokenizer", "small", "--from", "tokenizer", "--cache-dir", "cache", "--tokens",
     "data/corpus.jsonl", "--workers", "1"),
    ("submit", "command.yaml", *ONE_RUN),
    ("submit", "command.yaml", "--launcher", "sbatch", "--only", "fast", "--no-report"),
    ("submit", "command.yaml", "--launcher", "submitit", "--only", "faster", "--no-report"),
    ("submit", "trained.yaml", *ONE_RUN),
    ("report", "command"),
    ("submit", "command.yaml", *ONE_RUN, "--rerun", "baseline"),
)  # fmt: skip


@dataclass(frozen=True)
class Cycle:
    """The calls that wrote below `folder` as (event, path, flags of `open`, caller), and what they left."""

    folder: Path
    calls: list[tuple[str, Path, int, str]]
    left: dict[Path, os.stat_result]

    def is_private(self, path: Path) -> bool:
        """True if the path is in a folder that only its owner can look into."""
        return any(parent in self.left and not self.left[parent].st_mode & 0o077 for parent in path.parents)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory, offline_cache: Path) -> Cycle:
    """Run a cycle under umask 002 in a setgid folder, as groups that share their scratch have it."""
    base = tmp_path_factory.mktemp("written")
    folder, hook, log = base / "scratch", base / "hook", base / "calls"
    folder.mkdir()
    folder.chmod(0o2775)
    (folder / "data").mkdir()
    lines = (Path(os.__file__).parent / "heapq.py").read_text()
    documents = [json.dumps({"text": lines[start : start + 400]}) for start in range(0, 8000, 400)]
    (folder / "data" / "corpus.jsonl").write_text("\n".join(documents) + "\n")
    for name, text in (("trained.yaml", TRAINED), ("command.yaml", COMMAND), ("script.py", SCRIPT)):
        (folder / name).write_text(text)
    shutil.copytree(offline_cache / "tokenizers" / "sample", folder / "tokenizer")
    hook.mkdir()
    log.touch()
    (hook / "sitecustomize.py").write_text(HOOK.format(below=f"{folder}/", log=str(log)))
    environ = os.environ | {
        "PYTHONPATH": f"{hook}{os.pathsep}{code_root()}",
        "PATH": os.pathsep.join(
            [str(FakeSlurm(base / "slurm").bin), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "OMP_NUM_THREADS": "1",
    }
    for words in CYCLE:
        command = [sys.executable, "-m", "orchestrator", *words]
        done = subprocess.run(
            command, cwd=folder, env=environ, umask=0o002, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    calls = [(event, Path(path), flags, caller) for event, path, flags, caller in map(json.loads, log.open())]
    made = [path for top in ("out", "cache") for path in (folder / top, *(folder / top).rglob("*"))]
    return Cycle(folder, calls, {path: path.lstat() for path in made})


def test_nothing_is_opened_through_a_link(cycle: Cycle, tally: Tally) -> None:
    following = [
        (event, path, caller)
        for event, path, flags, caller in cycle.calls
        if (event == "os.truncate" or (event == "open" and not flags & (os.O_EXCL | os.O_NOFOLLOW)))
        and not cycle.is_private(path)
    ]
    assert not following
    tally("files are opened so that links are not followed", len(cycle.calls), f"{len(cycle.left)} files and folders")


def test_all_that_is_left_was_seen_to_be_made(cycle: Cycle) -> None:
    """Otherwise the test above would have missed it."""
    seen = {path for _, path, _, _ in cycle.calls}
    moved = {path for event, path, _, _ in cycle.calls if event == "os.rename"}
    assert not [path for path in cycle.left if path not in seen and not moved.intersection(path.parents)]


def test_modes_follow_the_umask_and_secrets_are_the_owners_alone(cycle: Cycle, tally: Tally) -> None:
    """Job scripts hold the study's `slurm.setup`, submitit's pickles are run by a job."""
    for path, status in cycle.left.items():
        mode = stat.S_IMODE(status.st_mode)
        if path.suffix == ".sbatch":
            assert mode == 0o600, path
        elif path.name == "submitit":
            assert mode & 0o777 == 0o700, path
        elif not cycle.is_private(path):
            assert mode == (0o2775 if path.is_dir() else 0o664), path
    assert {path.name for path in cycle.left} >= {"submitit", "report.html", "loss.csv", "job.out"}
    assert any(path.suffix == ".sbatch" for path in cycle.left)
    tally("modes follow the umask, what may hold a secret is its owner's alone", len(cycle.left), "setgid kept")
