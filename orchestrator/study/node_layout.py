"""The nodes of a job and the processes on each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The nodes of a job and the processes of a run on each."""

    nodes: int = 1
    processes: int = 1

    @property
    def world(self) -> int:
        return self.nodes * self.processes

    def flags(self) -> list[str]:
        """Return the flags of the job's task."""
        return [f"--nodes={self.nodes}", f"--processes={self.processes}"] if self.world > 1 else []
