"""The configuration of a run of our trainer, extended by what the orchestrator needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ablatrix.models.config import count_parameters, flops_per_token
from ablatrix.orchestrator.study.metric import NLL, Measure
from ablatrix.trainer.config import RunConfig, optimization
from ablatrix.trainer.config.parallelism import share_problems
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings


class TrainerRunConfig(RunConfig):
    """A resolved configuration of our trainer; see `run_config.Config`."""

    def shortened(self, steps: int) -> Self:
        update = {**optimization.shortened(self.trainer, steps), "log_interval": 1, "eval_tokens": 1}
        return self.model_copy(update={"trainer": self.trainer.model_copy(update=update)})

    def files(self, places: Iterable[tuple[int, Path]], cell: str) -> Iterator[dict[str, str]]:
        system = self.system.model_copy(update={"work_dir": ""})
        text = self.model_copy(update={"system": system}).to_json()  # the same for all runs of the cell, but for two
        start = text.index('\n  "system": {')  # no string contains a line break
        before, rest = text[start:].split('\n    "work_dir": ""', 1)
        between, after = rest.split(f'\n    "seed": {system.seed}', 1)
        for seed, folder in places:
            work_dir = f'\n    "work_dir": {json.dumps(str(folder), ensure_ascii=False)}'
            yield {run_files.CONFIG: f'{text[:start]}{before}{work_dir}{between}\n    "seed": {seed}{after}'}

    def as_tree(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def flat(self, folder: Path | None = None) -> dict[str, Any]:
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        values = {
            f"{name}.{key}": getattr(part, key) for name, part in sections.items() for key in type(part).model_fields
        }
        return values | ({"system.work_dir": str(folder)} if folder else {})

    @property
    def about(self) -> dict[str, str]:
        return {key: text for key, text in self.info.model_dump().items() if text}

    @property
    def measure(self) -> Measure:
        return NLL

    @property
    def steps(self) -> int | None:
        return self.trainer.max_iters

    @property
    def tokens(self) -> int | None:
        return self.trainer.max_iters * self.trainer.batch_size * self.data.block_size

    @property
    def parameters(self) -> int | None:
        return count_parameters(self.model)

    @property
    def flops_per_token(self) -> int | None:
        return flops_per_token(self.model)

    def sharing_problems(self, slurm: SlurmSettings) -> list[str]:
        layout, strategy = slurm.layout, self.trainer.strategy
        if strategy != "single":
            if slurm.runs_per_job > 1 and layout.world > 1:
                return [
                    f"trainer.strategy: with {strategy} all processes of a job share one run; leave out "
                    "slurm.runs_per_job"
                ]
            return share_problems(self, layout.world)
        if max(slurm.nodes, slurm.processes_per_node or 1) > 1:
            return [
                f"trainer.strategy: single, but a job has {layout.world} processes; choose ddp, or leave out "
                "slurm.nodes and slurm.processes_per_node"
            ]
        return []
