"""Ablatrix's own settings in the environment."""

import pytest

from ablatrix.orchestrator.study import env_settings
from ablatrix.trainer.rundir.errors import UserError
from tests.support.workspace import Workspace

NAMES = ("ABLATRIX_CLAIM_SECONDS", "ABLATRIX_SBATCH_TIMEOUT")


@pytest.mark.parametrize("text", ["", "1m", "-1", "nan", "inf", "1e999"])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAMES[0], text)
    with pytest.raises(UserError, match=f"{NAMES[0]}={text}: .*number of seconds"):
        env_settings.seconds(NAMES[0], 180.0)


def test_a_time_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAMES[0], raising=False)
    assert env_settings.seconds(NAMES[0], 180.0) == 180.0
    monkeypatch.setenv(NAMES[0], "2.5")
    assert env_settings.seconds(NAMES[0], 180.0) == 2.5


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_says_which(workspace: Workspace, name: str) -> None:
    workspace.environment[name] = "1m"
    study = workspace.write_study()
    message = workspace.run("plan", study, "--launcher", "sbatch", "--sbatch", code=2).stderr
    assert message == f"error: {name}=1m: in the environment; give a number of seconds, or unset it\n"
