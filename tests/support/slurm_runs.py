"""A run at work on the cluster, for the tests that disturb it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from ablatrix.trainer.rundir.events import read_events
from tests.support.workspace import Workspace

ITERS = 1500  # some seconds: long enough to be hit
States = dict[str, dict[str, Any]]


def slurm(*words: str, environment: dict[str, str] | None = None) -> str:
    """Return the output of one of Slurm's commands, which must succeed."""
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=180).stdout


@contextlib.contextmanager
def nodes_taken(environment: dict[str, str] | None = None, nodes: int = 1) -> Iterator[None]:
    """Take so many nodes: what is submitted within the block has to wait until its end."""
    wrap = ("--parsable", "--exclusive", f"--nodes={nodes}", "--time=5", "--wrap=sleep 300")
    job = slurm("sbatch", *wrap, environment=environment).strip()
    try:
        yield
    finally:
        slurm("scancel", job, environment=environment)


class Started:
    """A run of the baseline on the cluster, training; with `array` as the first task of two."""

    def __init__(
        self,
        workspace: Workspace,
        launcher: str = "sbatch",
        slurm_settings: str = "",
        array: bool = False,
        iters: int = ITERS,
    ) -> None:
        self.workspace = workspace
        self.iters = iters
        self.study = workspace.write_study(iters=iters, ckpt=100)
        if slurm_settings:
            self.study.write_text(self.study.read_text().replace('time: "00:10:00"', slurm_settings))
        cells = ("baseline", "rope") if array else ("baseline",)
        only = [word for cell in cells for word in ("--only", cell)]
        self.words = ("submit", self.study, "--launcher", launcher, *only, "--no-report")
        workspace.run(*self.words)
        self.job = self.after_step(20)["job_id"]
        assert array or self.job.isdigit(), "a single run is a plain job"

    def after_step(self, step: int) -> dict[str, Any]:
        """Return the state of the run once it has done `step` steps."""
        return self.until(lambda state: state["iter"] >= step)

    def state(self) -> dict[str, Any]:
        return self.workspace.states()["baseline"]

    def until(self, good: Callable[[dict[str, Any]], bool], seconds: float = 180) -> dict[str, Any]:
        found: States = self.workspace.wait(lambda states: good(states["baseline"]), seconds=seconds)
        return found["baseline"]

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.workspace.run_folder("baseline"))]

    def trainer_pid(self) -> int:
        events = read_events(self.workspace.run_folder("baseline"))
        return int([e for e in events if e["event"] in ("started", "resumed")][-1]["pid"])

    def finish(self, undisturbed: list[list[str]], resumed: bool = True) -> None:
        self.until(lambda state: state["state"] == "done")
        rows = self.workspace.loss("baseline")
        assert (
            rows[: len(undisturbed)] == undisturbed
        )  # at a constant learning rate a longer run begins like a short one
        steps = [int(row[0]) for row in rows[1:]]
        assert steps == sorted(set(steps))
        assert steps[-1] == self.iters
        assert ("resumed" in self.events()) is resumed
        assert self.events().count("finished") == 1
