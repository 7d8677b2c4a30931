"""`init --site` on a real cluster: a study that extends the file passes every check."""

from __future__ import annotations

import pytest

from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-3")]


def test_a_study_that_extends_the_profile_passes_the_checks(slurm_workspace: Workspace) -> None:
    assert slurm_workspace.run("init", "--site").stdout.startswith("site.yaml\n")
    study = slurm_workspace.write_study()
    text = study.read_text()
    study.write_text("extends: site.yaml\n" + text[: text.index("slurm:")])
    assert "no errors, 1 warning (sbatch)" in slurm_workspace.run("check", study, "--launcher", "sbatch").stdout
    script = slurm_workspace.run("plan", study, "--launcher", "sbatch", "--sbatch").stdout
    assert "#SBATCH --partition=" in script and "#SBATCH --mem=" in script
