"""Runs that fail alike within seconds stop the rest of the study."""

import re
from pathlib import Path

import pytest

from ablatrix.orchestrator.status import run_state
from ablatrix.orchestrator.store.study_dir import StudyRun
from ablatrix.orchestrator.submit import early_failures
from ablatrix.orchestrator.submit.early_failures import EarlyFailures
from ablatrix.trainer.rundir.events import append_event
from tests.support.command_studies import write_study
from tests.support.workspace import Workspace


@pytest.mark.parametrize(
    ("ends", "stops"),
    [
        ([("failed", "exit code 1: KeyError: 'a'", 2), ("failed", "exit code 1: KeyError: 'a'", 3)], True),
        (
            [("failed", "/x/a-seed1: bad value 0.1", 2), ("failed", "/x/b-seed2: bad value 0.2", 3)],
            True,
        ),
        ([("failed", "exit code 1: KeyError: 'a'", 2)], False),
        ([("failed", "exit code 1: KeyError: 'a'", 2), ("failed", "out of memory", 3)], False),
        ([("failed", "out of memory", 2), ("failed", "out of memory", 300)], False),
        ([("finished", "", 2), ("failed", "out of memory", 3), ("failed", "out of memory", 3)], False),
        ([("stopped", "", 2), ("stopped", "", 3)], False),
    ],
)
def test_what_stops_the_rest(tmp_path: Path, ends: list[tuple[str, str, float]], stops: bool) -> None:
    failures = EarlyFailures()
    for number, (event, reason, seconds) in enumerate(ends):
        folder = tmp_path / str(number)
        folder.mkdir()
        append_event(folder, event, **({"reason": reason} if reason else {}))
        failures.add(folder, seconds)
    assert bool(failures.reason) is stops


def test_the_rest_of_a_study_is_not_started(workspace: Workspace) -> None:
    command = {"command": "{python} -c 'raise SystemExit(\"no such dataset\")' {flags}", "flags": "--key=value"}
    features = {f"rate{i}": {"learning_rate": i / 1000} for i in range(1, 10)}
    study = write_study(workspace, features=features, **command)
    result = workspace.run("submit", study, "--launcher", "local", code=1)
    assert "runs failed alike: exit code 1: no such dataset" in result.stderr
    assert re.search(r"not started: \d+ runs?; fix this and rerun the command with --retry", result.stderr)
    found = sorted(run["state"] for run in workspace.states().values())
    assert found[0] == "failed" and found[-1] == "planned", found


def test_status_says_so_while_others_wait(tmp_path: Path) -> None:
    def state(word: str, reason: str = "") -> run_state.RunState:
        return run_state.RunState(StudyRun("a", "a", 1, [], {}, tmp_path), state=word, reason=reason)

    alike = [state("failed", "exit code 1: x 1"), state("failed", "exit code 1: x 2")]
    assert "2 runs failed alike, none is done, 1 still waiting" in early_failures.describe_alike(
        [*alike, state("queued")], tmp_path
    )
    assert f"cancel --all --study {tmp_path}`" in early_failures.describe_alike([*alike, state("queued")], tmp_path)
    assert early_failures.describe_alike(alike, tmp_path) == ""
    assert early_failures.describe_alike([*alike, state("queued"), state("done")], tmp_path) == ""
