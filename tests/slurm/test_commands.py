"""A command through a real Slurm: hostile values arrive as they are, under both launchers."""

import json

import pytest

from tests.command.test_command_runs import HOSTILE, write_study
from tests.workspace import Workspace

pytestmark = pytest.mark.slurm


def test_hostile_values_arrive(slurm_workspace: Workspace) -> None:
    workspace = slurm_workspace
    base = {**HOSTILE, "learning_rate": 0.01, "max_iters": 4}
    for cell, launcher in (("baseline", "sbatch"), ("rate", "submitit")):
        study = write_study(
            workspace,
            base=base,
            features={"rate": {"learning_rate": 0.02}},
            slurm={"time": "00:10:00", "mem": "500M"},
        )
        workspace.run("submit", study, "--launcher", launcher, "--no-report", "--only", cell)
    workspace.wait(lambda states: all(state["state"] == "done" for state in states.values()))
    for cell, rate in (("baseline", 0.01), ("rate", 0.02)):
        folder = workspace.run_folder(cell)
        words = [f"--out_dir={folder}", *(f"--{k}={v}" for k, v in {**base, "learning_rate": rate}.items())]
        assert json.loads((folder / "argv.json").read_text()) == words
