"""A run on the cluster, for tests that disturb it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from ablatrix.trainer.rundir.events import read_events
from tests.support.waiting import PATIENCE
from tests.support.workspace import HELD_STEP, Workspace

ITERS = 60  # each run waits after HELD_STEP until it has been disturbed
States = dict[str, dict[str, Any]]


def slurm(*words: str, environment: dict[str, str] | None = None) -> str:
    """Return the output of a Slurm command, which must succeed."""
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


@contextlib.contextmanager
def nodes_taken(environment: dict[str, str] | None = None, nodes: int = 1) -> Iterator[None]:
    """Occupy this many nodes, so that jobs submitted within the block wait until its end."""
    wrap = ("--parsable", "--exclusive", f"--nodes={nodes}", "--time=5", "--wrap=sleep 300")
    job = slurm("sbatch", *wrap, environment=environment).strip()
    try:
        yield
    finally:
        slurm("scancel", job, environment=environment)


class Started:
    """A baseline run on the cluster, held at a step; with `array`, the first of two array tasks."""

    def __init__(
        self,
        workspace: Workspace,
        launcher: str = "sbatch",
        slurm_settings: str = "",
        array: bool = False,
    ) -> None:
        self.workspace = workspace
        self.study = workspace.write_study(iters=ITERS, held=True)
        if slurm_settings:
            self.study.write_text(self.study.read_text().replace('time: "00:10:00"', slurm_settings))
        cells = ("baseline", "rope") if array else ("baseline",)
        only = [word for cell in cells for word in ("--only", cell)]
        self.words = ("submit", self.study, "--launcher", launcher, *only, "--no-report")
        workspace.run(*self.words)
        at_work = self.until(lambda state: state["iter"] >= HELD_STEP - 5)  # the previous row
        self.job, self.node = at_work["job_id"], at_work["node"]
        assert array or self.job.isdigit(), "a single run is a plain job"

    def state(self) -> dict[str, Any]:
        return self.workspace.states()["baseline"]

    def until(self, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: States = self.workspace.wait(lambda states: good(states["baseline"]))
        return found["baseline"]

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.workspace.run_folder("baseline"))]

    def trainer_pid(self) -> int:
        events = read_events(self.workspace.run_folder("baseline"))
        return int([e for e in events if e["event"] in ("started", "resumed")][-1]["pid"])

    def finish(self, undisturbed: list[list[str]], resumed: bool = True) -> None:
        """Let the run continue, and check that it ends like an undisturbed one."""
        self.workspace.release()
        self.until(lambda state: state["state"] == "done")
        assert self.workspace.loss("baseline") == undisturbed
        assert ("resumed" in self.events()) is resumed
        assert self.events().count("finished") == 1
