"""Live progress: the status table, refreshed in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.report.stages import ENDED, Stages
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.terminal.status_table import format_duration, status_table, summary_line

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study

REFRESH_SECONDS = 2.0
MOST_ROWS = 40
LEAST_DONE = 0.5  # runs that must be done before the time left is shown
ORDER = ("running", "failed", "lost", "stopped", "queued")  # of states; all others come last


def watch(
    study: Study, console: Console, go_on: Callable[[Sequence[RunState], Scheduler], bool] | None = None
) -> list[RunState]:
    """Show the study's state until the user quits.

    go_on: called after each refresh; if given, watching also ends when it returns False and no run is active.
    """
    scheduler = Scheduler()
    with LiveStatus(study, console, scheduler) as live:
        while True:
            states = live.refresh()
            if go_on and not go_on(states, scheduler) and not any(state.active for state in states):
                return states
            time.sleep(REFRESH_SECONDS)


class Pace:
    """The pace of a study since the first call, and the time left at that pace."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._open = self._done = 0.0

    def time_left(self, states: Sequence[RunState], now: float) -> float | None:
        """Return the seconds until all queued and running runs have ended; None while unknown.

        now: time of a clock in seconds. Runs count by their share of completed steps; half a run must be completed
        after the first call.
        """
        active = [state for state in states if state.active]
        open_runs = sum(1 - min(1.0, state.iter / state.max_iters) if state.max_iters else 1.0 for state in active)
        if self._begin is None:
            self._begin, self._open = now, open_runs
        self._done += max(0.0, self._open - open_runs)  # does not decrease when a stage queues more runs
        self._open = open_runs
        return (now - self._begin) * open_runs / self._done if active and self._done >= LEAST_DONE else None


class LiveStatus:
    """A table that refreshes in place; in a pipe, a line whenever the counts change.

    on_refresh: called with the states after each refresh.
    """

    def __init__(
        self,
        study: Study,
        console: Console,
        scheduler: Scheduler,
        on_refresh: Callable[[Sequence[RunState]], object] = lambda states: None,
    ) -> None:
        self.study, self.console, self.scheduler = study, console, scheduler
        self.on_refresh = on_refresh
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self.states: list[RunState] = []
        self._line, self._next = "", 0.0
        self._pace = Pace()
        self._ended: list[tuple[str, str, int]] | None = None
        self._stages = Stages()

    def __enter__(self) -> LiveStatus:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def refresh(self) -> list[RunState]:
        """Read the states again and show them; if they cannot be read, show the previous ones.

        Raises RunError if the study no longer exists, as runs without files would look as if they had never begun.
        """
        problem = ""
        try:
            self.study.require()
            self.states = self._with_reasons(study_state.collect(self.study, self.scheduler))
        except OSError as error:
            problem = f"\n{error.filename or self.study.folder}: {error.strerror}; the last known states are shown"
        line = summary_line(self.states, self.scheduler) + problem
        left = format_duration(self._pace.time_left(self.states, time.monotonic()))
        shown = f"{line}; about {left} left" if left else line
        if self.console.is_terminal:
            self._draw(shown)
        elif line != self._line:
            self.console.print(f"{time.strftime('%H:%M:%S')} {shown}")
        self._line = line
        self.on_refresh(self.states)
        return self.states

    def _with_reasons(self, states: list[RunState]) -> list[RunState]:
        """Return the states with the reasons of their stages, which are recomputed when a run has ended."""
        if not next_stage.has_stages(self.study):
            return states
        ended = [(state.run.id, state.state, state.attempt) for state in states if state.state in ENDED]
        if self._ended != ended:
            self._ended, self._stages = ended, next_stage.find_stages(self.study, states)
        return next_stage.with_reasons(states, self._stages)

    def _draw(self, line: str) -> None:
        shown = sorted(self.states, key=lambda s: ORDER.index(s.state) if s.state in ORDER else len(ORDER))
        if len(shown) > MOST_ROWS:
            line += f" (the first {MOST_ROWS} shown)"
        table = status_table(shown[:MOST_ROWS], str(self.study.folder), self.console.width, self.study.measure)
        self.live.update(Group(table, line), refresh=True)

    def tick(self) -> None:
        """Refresh if it is due; may be called at any time."""
        if time.monotonic() >= self._next:
            self.refresh()
            self._next = time.monotonic() + REFRESH_SECONDS
