"""The lines before the command of every job script: environment, working folder, the user's setup lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.store import job_command
from ablatrix.orchestrator.study import exported_env

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.batch import Batch

# Conda's and sites' scripts return non-zero and use unset variables, so setup runs as in an interactive shell.
# store/log_tail.py recognizes the message and quotes the line above it
_BEFORE_SETUP = """\
# slurm.setup: a line that fails does not end the job unless you say so (`module load cuda || exit 1`)
ablatrix_srun=$(command -v srun || true)
trap 'code=$?; echo "slurm.setup ended the job before its run started (exit code $code)" >&2; \
exit $((code ? code : 1))' EXIT
set +euo pipefail"""
_AFTER_SETUP = """\
# Back to the job's own settings, whatever the lines above changed; `module purge` may remove srun from PATH
trap - EXIT
unset IFS
set -euo pipefail
[ -z "$ablatrix_srun" ] || command -v srun >/dev/null || export PATH="$PATH:${ablatrix_srun%/*}\""""


def preamble(batch: Batch) -> list[str]:
    """Return the bash lines that precede the command in a batch's job scripts, the same for every launcher."""
    folder = f"cd {shlex.quote(str(Path.cwd()))}"
    variables = [f"export {name}={value}" for name, value in job_environment(batch).items()]
    setup = _setup(batch.settings.setup, batch.code)
    return [
        "set -euo pipefail",
        *exported_env.wall(batch.exports),
        folder,
        *variables,
        *setup,
        *([f"command {folder}"] if setup else []),  # a `cd` in setup must not move the relative paths of the runs
    ]


def _setup(lines: Sequence[str], code: Path) -> list[str]:
    """Return the user's lines, run without `-e` and `-u`, and lines that restore the job's strictness and code path."""
    if not lines:
        return []
    path = shlex.quote(str(code.resolve()))
    first = f'case "${{PYTHONPATH-}}:" in {path}:*) ;; *) export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} ;; esac'
    return [*_BEFORE_SETUP.split("\n"), *lines, *_AFTER_SETUP.split("\n"), first]


def job_environment(batch: Batch) -> dict[str, str]:
    """Return the variables that a job exports, quoted for the shell; srun does not inherit --cpus-per-task."""
    values = {
        **job_command.environment(batch.code, batch.threads),
        "SRUN_CPUS_PER_TASK": str(batch.settings.cpus_per_task),
    }
    return {name: shlex.quote(value) for name, value in values.items()}
