"""Hostile values and folder names through job scripts under real bash: the planned argv arrives, nothing else runs.

Stand-ins for the interpreter and for the user's program write down what they were started with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.job.command_runner import CommandRunner
from ablatrix.orchestrator.slurm import batch, sbatch
from ablatrix.orchestrator.slurm.batch import Batch, job_ids
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher
from ablatrix.orchestrator.slurm.submitit import SubmititLauncher
from ablatrix.orchestrator.store import submit_attempts
from ablatrix.orchestrator.submit import local_queue
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from ablatrix.trainer.config import from_flags
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from tests.support import shell_stubs
from tests.support.evidence import Tally
from tests.support.hostile_names import FOLDERS, WORDS
from tests.support.shell_stubs import RECORD, Record

SETTINGS: dict[str, Any] = {f"k{i}": word for i, word in enumerate(WORDS)}
SLURM = {
    "cpus_per_task": 2,
    "partition": "p%j|*",
    "extra": {"mail-user": "a+b@c&d"},
    "setup": ["export FROM_SETUP='a  b'"],
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the stand-ins of Slurm on PATH and of the interpreter as sys.executable."""
    shell_stubs.install(tmp_path / "bin")
    python = shell_stubs.program(tmp_path / "env $(touch CANARY) 'x' \"y\"" / "python")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(RECORD, str(tmp_path / "record"))
    return tmp_path


def create_batch(lab: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Return a batch of one run of a study that lies in a folder of this name, its command full of hostile words."""
    home = lab / "work" / folder
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    program = shell_stubs.program(lab / "; touch CANARY ; #" / "it's train")
    words = [word.replace("{", "{{").replace("}", "}}") for word in WORDS]
    study = {
        "name": "study",
        "command": [str(program), "{flags}", *words, "--out={run_dir}", "{k0}{seed}"],
        "env": {"HOSTILE": "".join(words) + "{k1}"},
        "flags": "--key=value",
        "base": SETTINGS,
        "features": {},
        "design": ["baseline"],
        "metrics": {"csv": "none.csv"},
        "slurm": SLURM,
    }
    Path("e.yaml").write_text(json.dumps(study))
    plan = make_plan(Options(Path("e.yaml"), launcher="local"))
    created = plan.create()
    assert all(submit_attempts.take(run.folder, 1) for run in created.runs)
    members = [[(run, 1)] for run in created.runs]
    return Batch(created, members, submit_attempts.new_token(), plan.loaded.experiment.slurm, plan.folder / "code")


def expected_argv(run_dir: Path) -> list[str]:
    flags = [f"--{key}={value}" for key, value in SETTINGS.items() if key not in ("k0", "k1")]  # those stand elsewhere
    return [*flags, *WORDS, f"--out={run_dir}", f"{WORDS[0]}1"]


def run_script(script: Path, lab: Path) -> Record:
    """Run a job script by bash as slurmd would; return the start of the interpreter."""
    environ = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_ARRAY_TASK_ID": "0"}
    done = subprocess.run(["bash", script], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (started,) = [record for record in shell_stubs.read(lab / "record") if not record.srun]
    return started


def start_by_sbatch(made: Batch, lab: Path) -> Record:
    SbatchLauncher().launch(made)
    script = made.study.folder.resolve() / "logs" / f"{made.token}.sbatch"
    options = dict(word[2:].partition("=")[::2] for word in shell_stubs.sbatch_options(script.read_text()))
    assert {key: str(value) for key, value in sbatch.sbatch_options(made.settings).items()}.items() <= options.items()
    assert options["output"] == str(script.parent).replace("%", "%%") + "/%j.out"
    return run_script(script, lab)


def start_by_submitit(made: Batch, lab: Path) -> Record:
    from submitit.core.utils import DelayedSubmission, JobPaths

    [base] = SubmititLauncher().launch(made)
    logs = made.study.folder.resolve() / "logs/submitit" / made.token
    (script,) = logs.glob(f"{base}/*_submission.sh")
    started = run_script(script, lab)
    assert started.argv == ["-P", "-u", "-m", "submitit.core._submit", str(logs / "%j")]
    [job_id] = job_ids(base, 1)
    pickled = DelayedSubmission.load(JobPaths(logs / "%j", job_id=job_id, task_id=0).submitted_pickle)
    assert pickled.function is os.execv
    return Record(False, pickled.args[1][1:], started.folder, started.environment)


def start_locally(made: Batch, lab: Path) -> Record:
    local_queue.LocalQueue(["0"]).run(made, lambda: None)
    (started,) = shell_stubs.read(lab / "record")
    return started


LAUNCHERS: dict[str, Callable[[Batch, Path], Record]] = {
    "sbatch": start_by_sbatch,
    "submitit": start_by_submitit,
    "local": start_locally,
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_launcher_starts_the_planned_task(
    lab: Path, folder: str, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create_batch(lab, folder, monkeypatch)
    if launcher == "submitit" and "%" in folder:
        with pytest.raises(UserError, match="submitit expands % in paths"):
            batch.check_folder(made.study.folder, launcher)
        return

    started = LAUNCHERS[launcher](made, lab)

    assert [[sys.executable, *started.argv]] == made.commands()
    assert started.folder == str(Path.cwd())
    if launcher != "local":
        assert started.environment is not None
        assert started.environment["FROM_SETUP"] == "a  b"
    assert not list(lab.rglob("CANARY"))
    assert sorted(os.listdir()) == ["e.yaml", "out"]


def test_the_command_gets_the_words_of_its_experiment_file(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    made = create_batch(lab, FOLDERS[0], monkeypatch)
    run_dir = Path.cwd() / made.study.runs[0].folder

    CommandRunner(made.study.runs[0].folder).run()

    (started,) = shell_stubs.read(lab / "record")
    assert started.argv == expected_argv(run_dir)
    assert started.environment is not None
    assert started.environment["HOSTILE"] == "".join(WORDS) + WORDS[1]
    assert not list(lab.rglob("CANARY"))
    tally("a command's argv and variables are those of the experiment file", cases=len(WORDS), detail="0 canaries")


def paste(file: Path, lab: Path) -> Record:
    """Return what bash starts that reads this file as if it were typed."""
    done = subprocess.run(["bash"], input=file.read_bytes(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (started,) = shell_stubs.read(lab / "record")
    return started


def test_args_of_a_command_can_be_pasted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_batch(lab, FOLDERS[0], monkeypatch)
    run_dir = Path.cwd() / made.study.runs[0].folder
    CommandRunner(made.study.runs[0].folder).run()
    shell_stubs.read(lab / "record")

    assert paste(run_dir / run_files.ARGS, lab).argv == expected_argv(run_dir)


def test_args_of_the_trainer_can_be_pasted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablatrix.trainer.run_folder import prepare

    monkeypatch.chdir(lab)
    (lab / "run").mkdir()
    words = ["--data.file_path=it's a.jsonl", f"--info.description={''.join(WORDS)}"]
    prepare(lab / "run", from_flags(words), words)

    assert paste(lab / "run" / run_files.ARGS, lab).argv == ["-m", "ablatrix.trainer", *words]
    assert not (lab / "CANARY").exists()
