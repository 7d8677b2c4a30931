"""Slurm's queue, read once per refresh, and the reasons why it may not show a job."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from ablatrix.orchestrator.slurm import commands, job_parsing


@dataclass
class Scheduler:
    """The queue, and since when the controller has not answered. user: the jobs' owner; default: this user."""

    silent_since: float | None = None
    problem: str = ""
    jobs: dict[str, job_parsing.Job] | None = field(default=None)
    user: str | None = None
    _settings: dict[str, str] | None = None
    _next_try: float = 0.0
    _pause: float = 5.0

    def refresh(self) -> None:
        """Read the queue; back off while the controller does not answer."""
        if time.monotonic() < self._next_try:
            return
        try:
            self.jobs = commands.queue(self.user) if self.user else commands.queue()
            self.problem, self.silent_since, self._pause = "", None, 5.0
        except commands.ControllerError as error:
            self.jobs, self.problem = None, str(error)
            self.silent_since = self.silent_since or time.time()
            self._next_try = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, 120.0)

    def blind_spot(self, cluster: str) -> str:
        """Return why a job may exist although the queue does not show it, '' if the queue would show it.

        cluster: on which the run was queued or ran, '' if unknown.
        """
        if not commands.available():
            return "there is no Slurm on this machine"
        if not cluster and not self.user:
            return ""
        here = self._setting("ClusterName")
        if cluster and here and cluster != here:
            return f"it was queued on cluster {cluster}, this machine belongs to {here}"
        hidden = "jobs" in self._setting("PrivateData", "jobs").lower().split(",")
        if self.user and hidden and not self.jobs and os.geteuid():
            return f"jobs of {self.user} are not visible to you on this cluster"
        return ""

    def _setting(self, name: str, default: str = "") -> str:
        if self._settings is None:
            try:
                self._settings = commands.settings()
            except commands.ControllerError:
                return default
        return self._settings.get(name, "")
