"""Programs that stand in for Slurm and a trainer: they record what they were started with, and exit."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

RECORD = "ABLATRIX_RECORD"  # the file that the stubs append to; this name is exported to jobs

PYTHON = """\
#!/bin/sh
{ printf '\\001RUN\\0%s\\0' "$#"; [ $# = 0 ] || printf '%s\\0' "$@"; pwd -P; printf '\\0'; } >>"$ABLATRIX_RECORD"
# The variables of an array's other tasks are those of its first
[ "${SLURM_ARRAY_TASK_ID:-0}" != 0 ] || exec cat /proc/$$/environ >>"$ABLATRIX_RECORD"
"""
SRUN = """\
#!/bin/sh
{ printf '\\001SRUN\\0%s\\0' "$#"; printf '%s\\0' "$@"; } >>"$ABLATRIX_RECORD"
while :; do
  case $1 in
  --output | --error) shift 2 ;;
  -*) shift ;;
  *) exec "$@" ;;
  esac
done
"""
SBATCH = """\
#!/bin/sh
case $1 in
--parsable) echo $$ ;;
*) echo "Submitted batch job $$" ;;
esac
"""
# Runs job scripts one after the other, each with its array task number, as slurmd would start them
DRIVER = """\
#!/bin/bash
while IFS= read -r -d '' folder && IFS= read -r -d '' script && IFS= read -r -d '' task; do
  ( cd -- "$folder" && export SLURM_JOB_ID=1 SLURM_JOB_NODELIST=node1 SLURM_ARRAY_TASK_ID=$task
    exec bash -- "$script" </dev/null )
  printf '%s ' $?
done
"""


@dataclass(frozen=True)
class Record:
    """One start of a stub: of `srun` (with its full command line) or of a program."""

    srun: bool
    argv: list[str]
    folder: str = ""
    environment: dict[str, str] | None = None


def install(folder: Path) -> None:
    """Install the stubs of Slurm's commands and the driver in a folder, which must come first on PATH."""
    folder.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("sbatch", SBATCH), ("driver", DRIVER)):
        program(folder / name, text)


def program(path: Path, text: str = PYTHON) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def read(path: Path) -> list[Record]:
    """Return what was recorded since the last call."""
    fields = path.read_bytes().split(b"\0") if path.exists() else []
    path.unlink(missing_ok=True)
    words = [field.decode("utf-8", "surrogateescape") for field in fields]
    starts = [i for i, word in enumerate(words) if word in ("\1RUN", "\1SRUN")]
    records = []
    for start, end in zip(starts, [*starts[1:], len(words)][: len(starts)], strict=True):
        count = int(words[start + 1])
        argv, rest = words[start + 2 : start + 2 + count], words[start + 2 + count : end]
        if words[start] == "\1SRUN":
            records.append(Record(True, argv))
        else:
            pairs = (word.partition("=") for word in rest[1:] if "=" in word)
            records.append(Record(False, argv, rest[0].removesuffix("\n"), {name: text for name, _, text in pairs}))
    return records


def sbatch_options(script: str) -> list[str]:
    """Return the words in a script's option lines up to the first command, unquoted as by sbatch.

    #PBS and #BSUB lines count too, because sbatch reads them.
    """
    found: list[str] = []
    for line in script.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if re.match(r"#(SBATCH|PBS|BSUB)", line):
            found += shlex.split(line.partition(" ")[2], comments=True)
    return found
