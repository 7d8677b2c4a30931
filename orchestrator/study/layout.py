"""Nodes of a job and processes on each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Nodes of a job and processes of a run on each of them."""

    nodes: int = 1
    processes: int = 1

    @property
    def world(self) -> int:
        return self.nodes * self.processes

    def flags(self) -> list[str]:
        """For the command line of the job's task."""
        return [f"--nodes={self.nodes}", f"--processes={self.processes}"] if self.world > 1 else []
