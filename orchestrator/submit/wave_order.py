"""The order of a study: which runs wait for room in the queue or for results, recorded in the study's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import PRIVATE, atomic_write

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study

RECORD = "next-wave.json"
NO_SBATCH = "sbatch: not found"


class Order(BaseModel):
    """What remains to be queued and how: everything that another process needs to continue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    launcher: str
    settings: SlurmSettings
    exports: list[str]
    code: Path
    surroundings: dict[str, Any]  # the part of provenance.json that all runs share
    report: bool = True
    runs: dict[str, int] = {}  # id -> newest attempt when the run began to wait
    problem: str = ""  # why a follow-up job could not continue
    staged: bool = False  # runs of a later stage may be due when the active ones have ended
    budget: float | None = None  # GPU-hours that later stages may not exceed
    most: int = 0  # jobs that sbatch accepted at once after refusing more; 0: unknown

    @property
    def blocked(self) -> bool:
        """True if jobs cannot submit jobs on this site."""
        return self.problem.startswith(NO_SBATCH)

    def write(self, study: Study, **changes: Any) -> None:
        """Write the order with these changes into the study's folder. Raises OSError."""
        text = self.model_copy(update=changes).model_dump_json(indent=1)
        # the setup lines may contain a secret
        atomic_write(study.folder / RECORD, text + "\n", mode=PRIVATE)


def read(study: Study) -> Order | None:
    """Return the order recorded in the study's folder, None if there is none."""
    record = run_files.read_json(study.folder / RECORD)
    try:
        return Order.model_validate(record) if record else None
    except ValidationError:  # corrupt, or from another version: the next submit queues the runs
        return None


def is_waiting(study: Study, ids: Iterable[str] | None = None) -> bool:
    """True if one of these runs (None: any run) waits for room."""
    order = read(study)
    return bool(order and (order.runs if ids is None else set(ids) & order.runs.keys()))


def forget(study: Study, ids: Iterable[str] | None = None) -> int:
    """Remove these runs (None: all, and later stages) from the order; return how many waited. Raises OSError."""
    order = read(study)
    if order is None:
        return 0
    kept = {name: attempt for name, attempt in order.runs.items() if ids is not None and name not in set(ids)}
    if kept or (order.staged and ids is not None):
        order.write(study, runs=kept)
    else:
        (study.folder / RECORD).unlink(missing_ok=True)
    return len(order.runs) - len(kept)


def find_waiting(study: Study, order: Order | None, states: Sequence[RunState]) -> list[RunState]:
    """Return the runs of an order that wait for room, except those that another submit has claimed since."""
    runs = order.runs if order else {}
    found = [s for s in states if not s.active and s.state != "done" and runs.get(s.run.id, -1) == s.attempt]
    return in_queue_order(found, study.name, lambda state: state.run)
