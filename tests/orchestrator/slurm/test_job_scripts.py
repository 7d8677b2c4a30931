"""Job scripts of both launchers and of the report, run by bash with stand-ins for srun and Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import helper_jobs
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher
from ablatrix.orchestrator.slurm.submitit import SubmititLauncher
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from tests.support import shell_stubs
from tests.support.batches import make_batch
from tests.support.shell_stubs import Record

SCRIPTS = {
    "sbatch": lambda batch: SbatchLauncher().script(batch),
    "submitit": lambda batch: SubmititLauncher().script(batch),
    "report": lambda batch: helper_jobs.script(batch, helper_jobs.REPORT),
}


def run_script(home: Path, name: str, setup: list[str]) -> tuple[subprocess.CompletedProcess[str], list[Record]]:
    """Run one launcher's script; its result, and the starts of the interpreter."""
    script = home.parent / f"{name}.sbatch"
    script.write_text(SCRIPTS[name](make_batch(home, SlurmSettings(setup=setup))))
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NODELIST": "node1"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment, check=False)
    return done, [record for record in shell_stubs.read(home.parent / "record") if not record.srun]


TOLERATED = [
    "false",
    'if [ -n "$PS1" ]; then OLD="$PS1"; fi',
    'export CONDA_BACKUP_AR="$AR"',
    'module() { echo "gcc reloaded"; [ -f /nonexistent ] && echo never; }; module load gcc',
    "set -euo pipefail",
    "cat /nonexistent | true",
    "nosuchcommand",
    "cd /",
    "unset HOME; unset PYTHONPATH",
    "export PATH=$ABLATRIX_TOOLS  # `module purge` takes Slurm's folder away",
    "export PYTHONPATH=/opt/site",
    "shopt -s nullglob expand_aliases; alias cd=false; set -f; IFS=/",
    "trap 'echo trapped' EXIT; trap 'echo error' ERR",
    "return 1",
    "( exit 3 )",
]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("line", TOLERATED)
def test_setup_runs_as_in_a_shell(home: Path, name: str, line: str) -> None:
    """Lines that fail, print or change the shell do not end the job, and do not move it."""
    done, (record,) = run_script(home, name, [line, "export AFTER=yes"])
    assert done.returncode == 0, done.stderr
    assert record.environment is not None
    assert record.environment["AFTER"] == "yes"
    assert record.folder == str(home)
    assert record.environment["PYTHONPATH"].split(":")[0] == str(home / "code")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["false || exit 1"], 1),
        (["nosuchcommand || exit 7"], 7),
        (["exit 0"], 1),  # a job that ends well without its run would look like a mystery
        (["set -e", "false"], 1),
        (["trap 'exit 5' ERR", "false"], 5),
        ([': "${SCRATCH_OF_MINE:?is not set}"'], 1),
    ],
)
def test_a_failure_that_setup_marks_ends_the_job(home: Path, name: str, lines: list[str], code: int) -> None:
    done, records = run_script(home, name, lines)
    assert done.returncode == code
    assert not records
    assert "slurm.setup ended the job before its run started (exit code" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_job_is_strict_again_after_setup(home: Path, name: str) -> None:
    """What follows setup fails for an unset variable, whatever setup has switched off."""
    text = SCRIPTS[name](make_batch(home, SlurmSettings(setup=["set +u"])))
    head, _, _ = text.partition(
        "\nexec " if name == "report" else '\ncase "$SLURM' if name == "sbatch" else "\n# command"
    )
    done = subprocess.run(
        ["bash"], input=head + '\necho "$UNSET_VARIABLE"\n', capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "UNSET_VARIABLE: unbound variable" in done.stderr


def test_the_script_can_be_tried_outside_a_job(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bash on the login node: the run is started directly, srun would ask for an allocation."""
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    script = home.parent / "script"
    script.write_text(SbatchLauncher().script(make_batch(home, SlurmSettings(nodes=2))))
    subprocess.run(["bash", script], env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"}, check=True)
    (record,) = shell_stubs.read(home.parent / "record")
    assert not record.srun
    assert record.argv[-1].endswith("cell1-seed1:1")
