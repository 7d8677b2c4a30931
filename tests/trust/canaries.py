"""Secrets that nobody can guess, planted where people keep theirs, and the search for them in every byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.workspace import Workspace

LOOKER = Path(__file__).with_name("looker.py")
VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PASSWORD", "FOO")


def write_study(workspace: Workspace, **changes: Any) -> Path:
    """Two cells of a command that writes down which variables it sees."""
    study = {
        "name": "study",
        "command": "python looker.py {run_dir} {mode}",
        "base": {"mode": "run"},
        "features": {"other": {"mode": "again"}},
        "design": ["baseline", "one_at_a_time"],
        "metrics": {"regex": r"iter (?P<iter>\d+): loss (?P<loss>\S+)"},
        **changes,
    }
    shutil.copy(LOOKER, workspace.folder)
    path = workspace.folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path
