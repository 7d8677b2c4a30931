"""A command through a real Slurm: hostile values, from a folder with a hostile name, arrive as they are."""

import dataclasses
import json
import random
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import job_parsing
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher, call_sbatch
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from ablatrix.trainer.rundir.errors import UserError
from tests.support.command_studies import HOSTILE, write_study
from tests.support.evidence import Cases, Tally
from tests.support.hostile_names import FOLDERS
from tests.support.waiting import wait_for
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-3")]

FOLDER = '; it\'s "a" $(touch CANARY) {{ 7*7 }} #~ żółw'


def test_hostile_values_arrive(slurm_workspace: Workspace) -> None:
    workspace = dataclasses.replace(slurm_workspace, folder=slurm_workspace.folder / FOLDER)
    workspace.folder.mkdir()
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
    assert not list(slurm_workspace.folder.rglob("CANARY*"))


def test_a_jobs_log_is_where_the_script_says(
    slurm_workspace: Workspace, monkeypatch: pytest.MonkeyPatch, seed: int, cases: Cases, tally: Tally
) -> None:
    """In whatever folder; without one, Slurm would end the job and nobody would know why."""
    names = random.Random(seed).sample([*FOLDERS, "back\\slash", "a\\"], cases(4, len(FOLDERS) + 2))
    logs = []
    for number, name in enumerate(names):
        folder = slurm_workspace.folder / str(number) / name
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        study = {"name": "s", "command": ["/bin/true", "{flags}"], "metrics": {"csv": "x"}, "base": {"a": 1}}
        Path("e.yaml").write_text(json.dumps({**study, "design": ["baseline"], "features": {}}))
        try:
            plan = make_plan(Options(Path("e.yaml"), launcher="sbatch"))
        except UserError:
            assert "\\" in name
            continue
        (folder / "out/s/logs").mkdir(parents=True)
        planned = plan.study
        batch = Batch(planned, [[(planned.runs[0], 1)]], "TOKEN", plan.loaded.experiment.slurm, folder)
        script = folder / "script"
        script.write_text(SbatchLauncher().script(batch))
        [job] = call_sbatch(script)
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
        for line in (f"Comment={job_parsing.comment('TOKEN')}", f"WorkDir={folder}", "JobName=s\n"):
            assert line in shown, (name, shown)
        logs.append(folder / f"out/s/logs/{job}.out")
    wait_for(lambda: all(path.exists() for path in logs))
    detail = f"{len(names) - len(logs)} refused before"
    tally("a job's log is where its script says, in any folder", cases=len(names), detail=detail)
