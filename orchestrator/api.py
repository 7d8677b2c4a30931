"""The Python API (`import ablatrix`): what the verbs print, as pandas tables, for notebooks and scripts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ablatrix.orchestrator.report import build, record
from ablatrix.orchestrator.report.collect import read_study
from ablatrix.orchestrator.report.looks import analyze
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.terminal import plan_tables
from ablatrix.orchestrator.terminal.printing import open_console
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from ablatrix.orchestrator.verbs.status import read_states
from ablatrix.orchestrator.verbs.submit import submit as run_submit
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import read_bytes

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.status.run_state import RunState

OUT = Path("out")
BASES = {"matched": "effect", "flops": "effect_equal_flops", "seconds": "effect_equal_seconds"}
EFFECT = ("mean", "low", "high", "p", "joint_low", "joint_high", "p_joint", "at_least", "runs", "method")


@dataclass(frozen=True)
class Study:
    """A study as it was on disk when loaded; `load` it again to see later results.

    states: what `status` would show for each run.
    """

    name: str
    folder: Path
    states: tuple[RunState, ...]

    @cached_property
    def analysis(self) -> Analysis:
        """The comparison behind every table, as computed for the report."""
        return analyze(read_study(self.folder, run_state.reasons(self.states)))

    @cached_property
    def results(self) -> dict[str, Any]:
        """What `report --json` prints for the study; docs/automation.md describes the fields."""
        return record.record_of(self.analysis)

    def runs(self) -> pd.DataFrame:
        """Return a row per run: its state, final value of the study's measure, cost, and the settings it changes."""
        rows = [
            {
                "run": run.id,
                "cell": run.cell,
                "seed": run.seed,
                "features": run.features,
                "state": run.state,
                "reason": run.reason,
                "value": run.value,
                "in_mean": run.usable,
                "parameters": run.parameters,
                "tokens": run.number("tokens"),
                "seconds": run.number("seconds"),
                "folder": self.folder / run.id,
                **run.overrides,
            }
            for run in self.analysis.whole.runs
        ]
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """Return every row of every loss.csv, with its run, cell and seed."""
        found = [_read_curve(self.folder / run.id) for run in self.analysis.whole.runs]
        for run, rows in zip(self.analysis.whole.runs, found, strict=True):
            for place, (name, value) in enumerate({"run": run.id, "cell": run.cell, "seed": run.seed}.items()):
                rows.insert(place, name, value)
        return pd.concat([rows for rows in found if len(rows)] or found[:1], ignore_index=True)

    def verdicts(self) -> pd.DataFrame:
        """Return a row per cell: its verdict, the effect with its simultaneous 95% interval, and the sentence."""
        effects = self.effects()
        names = ["cell", "verdict", "value", "seed_sd", "sentence"]
        rows = [{name: cell[name] for name in names} for cell in self.results["cells"]]
        shown = effects[["mean", "joint_low", "joint_high", "p_joint", "runs"]].rename(columns={"mean": "effect"})
        return pd.DataFrame(rows, columns=names).set_index("cell").join(shown)

    def effects(self, equal: str = "matched") -> pd.DataFrame:
        """Return cell minus baseline with intervals and p-values, a row per cell that has an effect.

        equal: the budget at which they are compared: "matched" (tokens or steps, `results["budget"]`), "flops" or
        "seconds". docs/automation.md describes the columns. Raises ValueError for any other value.
        """
        if equal not in BASES:
            raise ValueError(f"equal={equal!r}: choose one of {', '.join(BASES)}")
        rows = {cell["cell"]: cell[BASES[equal]] for cell in self.results["cells"] if cell[BASES[equal]]}
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(EFFECT)).rename_axis("cell")

    def report(self, pdf: bool = False) -> Path:
        """Write the report as `ablatrix report` does, and return the path of its page."""
        made = build.build(self.folder, run_state.reasons(self.states), pdf)
        return next(path for path in made.paths if path.name == "report.html")


def load(study: str | Path | None = None, output: str | Path = OUT) -> Study:
    """Return the study with this folder or name, by default the last submitted one. Raises UserError."""
    found = study_dir.find_study(None if study is None else str(study), Path(output))
    return Study(found.name, found.folder, tuple(study_state.collect(found)))


def plan(file: str | Path, sets: Sequence[str] = (), launcher: str = "auto") -> pd.DataFrame:
    """Return a row per run of an experiment, with the settings it changes. Creates nothing.

    sets: overrides, such as "trainer.max_iters=100". Raises UserError with everything that is wrong in the file.
    """
    planned = make_plan(Options(Path(file), launcher, sets))
    runs = plan_tables.as_json(planned.runs, planned.folder, planned.launcher, planned.hours)["runs"]
    return pd.DataFrame([{**run, **run.pop("overrides")} for run in runs]).rename(columns={"id": "run"})


def submit(
    file: str | Path,
    sets: Sequence[str] = (),
    launcher: str = "auto",
    *,
    only: Sequence[str] = (),
    retry: bool = False,
    wait: bool = False,
) -> Study:
    """Queue the runs of an experiment that are not done, as `ablatrix submit` does, and return the study.

    With the local launcher, it returns when the runs have ended. Raises UserError or RunError.
    """
    folder = load_experiment(Path(file), sets).experiment.folder  # as the file is when called
    run_submit(Options(Path(file), launcher, sets, only=only, retry=retry, wait=wait), open_console())
    return load(folder)


def status(study: str | Path | None = None, output: str | Path = OUT) -> pd.DataFrame:
    """Return a row per run: its state, progress, and where it runs (the fields of `status --json`)."""
    scheduler = Scheduler()
    found = study_dir.find_study(None if study is None else str(study), Path(output))
    states, _ = read_states(found, scheduler)
    return pd.DataFrame(run_state.as_record(states, scheduler.silent_since)["runs"])


def _read_curve(folder: Path) -> pd.DataFrame:
    """Return the rows of a run's loss.csv; an unterminated line is not a row."""
    try:
        data = read_bytes(folder / run_files.LOSS)
    except OSError:
        return pd.DataFrame()
    whole = data[: data.rfind(b"\n") + 1]
    return pd.read_csv(io.BytesIO(whole)) if whole else pd.DataFrame()
