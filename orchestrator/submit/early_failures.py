"""Stop a study whose first runs all fail in the same way within seconds: the other runs would fail too."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.status import diagnosis
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState

EARLY_SECONDS = 60.0  # from the start of a run; importing a framework from a slow file system may take half a minute
ENOUGH = 2


class EarlyFailures:
    """Detects that the first runs fail alike. A run that finishes, lasts longer or fails differently ends detection."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._suspected = True

    def add(self, run_dir: Path, seconds: float) -> None:
        """Record the end of a run that lasted `seconds`."""
        events = read_events(run_dir)
        last = events[-1] if events else {}
        reason = str(last.get("reason", "")) if last.get("event") == "failed" else ""
        alike = not self._reasons or diagnosis.generalize(reason) == diagnosis.generalize(self._reasons[0])
        self._suspected = self._suspected and bool(reason) and seconds < EARLY_SECONDS and alike
        self._reasons.append(reason)

    @property
    def reason(self) -> str:
        """Return why the first runs failed if there are enough of them to stop the others, else ''."""
        return self._reasons[-1] if self._suspected and len(self._reasons) >= ENOUGH else ""

    @property
    def count(self) -> int:
        return len(self._reasons)


def describe_alike(states: Sequence[RunState], study: Path) -> str:
    """Return a line for `status` if runs are waiting although all that have ended failed in the same way, else ''."""
    failed = [state.reason for state in states if state.state == "failed"]
    waiting = sum(state.state == "queued" for state in states)
    alike = len({diagnosis.generalize(reason) for reason in failed}) == 1
    if len(failed) < ENOUGH or not waiting or not alike or any(state.state == "done" for state in states):
        return ""
    return (
        f"{len(failed)} runs failed alike, none is done, {waiting} still waiting: {failed[-1]}; stop them with "
        f"`{program()} cancel --all --study {shlex.quote(str(study))}`, fix this and rerun submit with --retry"
    )
