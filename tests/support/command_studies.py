"""Studies whose runs are a command: tests/support/train_script.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import preflight
from ablatrix.trainer.rundir import run_files
from tests.support.workspace import Workspace

TRAIN_SCRIPT = Path(__file__).with_name("train_script.py")
LOSSES = [
    r"step (?P<iter>\d+): train loss [\d.]+, val loss (?P<val_loss>\S+)",
    r"iter (?P<iter>\d+): loss (?P<loss>[^,]+), time (?P<dt_ms>[\d.]+)ms",
]


HOSTILE = {
    "blank": " a  b ",
    "quotes": 'it\'s "quoted" `x`',
    "newline": "first\nsecond\r\n\tthird",
    "shell": "$(touch /tmp/never) $HOME $PATH ; rm -rf x | y && z > w & # no",
    "dash": "-rf",
    "dashes": "--out_dir=elsewhere",
    "unicode": "żółw 学习 🐢 \u202e \u00a0",
    "braces": "{run_dir} {{x}} {flags} %A %j",
    "glob": "* ? [a-z] ~ !",
    "backslash": "\\n \\ \\\\ $'\\x41'",
    "empty": "",
    "equals": "a=b=c",
    "sbatch": "#SBATCH --time=1",
}


def write_study(workspace: Workspace, **changes: object) -> Path:
    """Write a study of a trainer that prints like nanoGPT: baseline, two learning rates, dropout off."""
    study = {
        "name": "study",
        "command": "python train_script.py --out_dir={run_dir} {flags}",
        "flags": "--key=value",
        "base": {"learning_rate": 0.01, "max_iters": 40, "dropout": 0.2},
        "features": {
            "rate": {"levels": {"low": {"learning_rate": 0.005}, "high": {"learning_rate": 0.02}}},
            "nodrop": {"dropout": 0.0},
        },
        "design": ["baseline", "one_at_a_time"],
        "metrics": {"regex": LOSSES, "steps": "{max_iters}", "tokens_per_step": 64},
        **changes,
    }
    shutil.copy(TRAIN_SCRIPT, workspace.folder)
    path = workspace.folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, allow_unicode=True, sort_keys=False))
    return path


def create(workspace: Workspace, pause: float = 0.01, steps: int = 100, **changes: object) -> Study:
    base = {"learning_rate": 0.01, "max_iters": steps, "pause": pause, "save": 20}
    study = write_study(
        workspace, **{"base": base, "features": {}, "design": ["baseline"], "workdir": str(workspace.folder), **changes}
    )
    runs = matrix.runs(load_experiment(study), preflight.vocabulary)
    created = study_dir.create_study(workspace.folder / "out" / "study", "study", study, {}, runs)
    study_dir.update_configs(created, runs)
    return created


def start(workspace: Workspace, folder: Path) -> "subprocess.Popen[bytes]":
    """Start what a job starts for a run, with its output in job.out."""
    with (folder / run_files.JOB_OUT).open("ab") as output:
        command = [sys.executable, "-P", "-m", "ablatrix.orchestrator.job", str(folder)]
        return subprocess.Popen(command, cwd=workspace.folder, env=workspace.env(), stdout=output, stderr=output)
