"""The verb `plan`: show the runs of an experiment and their cost, without creating anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import lr_schedules, next_stage
from ablatrix.orchestrator.slurm import batch, commands, launchers, site_limits
from ablatrix.orchestrator.status import cost, earlier_results, study_state
from ablatrix.orchestrator.store import selected_cluster, study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study import designs, matrix, screening, tuning, value_origins
from ablatrix.orchestrator.study.design_comparison import compare_designs
from ablatrix.orchestrator.study.forecast import Forecast, forecast
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import changed_inputs, data_preflight, preflight, selection, slurm_preflight
from ablatrix.orchestrator.terminal import plan_tables
from ablatrix.orchestrator.terminal.printing import list_names
from ablatrix.trainer.data.corpus_settings import follower
from ablatrix.trainer.rundir.console import complain, count
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import list_folder

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.status.earlier_results import EarlierResults
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.looks import Looks
    from ablatrix.orchestrator.study.matrix import Run
    from ablatrix.orchestrator.study.notify_settings import Notify
    from ablatrix.orchestrator.submit.earlier_runs import EarlierRun

MANY_FEATURES = 4  # from this number on, a screening design may be worthwhile
LAUNCHERS = ("auto", "local", "submitit", "sbatch")


@dataclass(frozen=True)
class Options:
    """The options of `plan`, `check` and `submit`."""

    file: Path
    launcher: str = "auto"
    sets: Sequence[str] = ()
    only: Sequence[str] = ()
    retry: bool = False
    rerun: Sequence[str] = ()
    smoke: int = 0
    devices: str | None = None
    wait: bool = False
    dry_run: bool = False
    with_report: bool = True
    over_budget: bool = False


@dataclass
class Plan:
    """A valid study that is ready to be created."""

    loaded: Loaded
    runs: list[Run]
    folder: Path
    launcher: str
    options: Options = field(default_factory=lambda: Options(Path()))
    earlier: dict[str, EarlierRun] = field(default_factory=dict)  # run id -> the run it replaces or continues
    existed: set[str] = field(default_factory=set)  # names in the study's folder before `create`
    _origins: dict[str, str] = field(default_factory=dict)  # cell -> origins.json of its runs

    @property
    def is_smoke_test(self) -> bool:
        """True for the plan of `submit --smoke`, in a folder of its own."""
        return self.folder != self.loaded.experiment.folder

    @property
    def cluster(self) -> str:
        """The cluster that jobs are submitted to, '' for this machine's own."""
        return "" if self.launcher == "local" else self.loaded.experiment.slurm.clusters or ""

    @cached_property
    def results(self) -> EarlierResults:
        """The noise and run times of finished runs."""
        return earlier_results.find(self.folder, self.runs)

    @cached_property
    def hours(self) -> dict[str, float]:
        """Return cell -> hours of one of its runs, if known (`cost.hours_per_run`)."""
        hours = cost.hours_per_run(self.folder, self.runs, self.loaded.experiment, self.results.hours)
        if self.loaded.experiment.tune:
            by_arm = {tuning.arm_of(cell): each for cell, each in hours.items()}
            cells = {run.cell: tuning.arm_of(run.cell) for run in self.runs}
            hours = {cell: hours.get(cell, by_arm[arm]) for cell, arm in cells.items() if arm in by_arm}
        return hours

    @property
    def forecast(self) -> Forecast:
        """Return what the study can show."""
        experiment, runs = self.loaded.experiment, self.runs
        if experiment.tune:
            runs = experiment.tune.compared(runs)
        return forecast(
            experiment,
            runs[0].config,
            cells={run.cell for run in runs},
            seeds=len({run.seed for run in runs}),
            earlier=self.results.noise,
            hours=self.hours,
            hours_unit=cost.unit(experiment.slurm),
        )

    @property
    def screen(self) -> list[str]:
        """Sentences about the study's screening design, [] if it has none."""
        experiment = self.loaded.experiment
        screen = designs.screen_of(experiment.design, len(experiment.features))
        return list(screening.describe(screen, list(experiment.features))) if screen else []

    @property
    def looks(self) -> Looks | None:
        """The planned looks; a smoke test has none."""
        return None if self.is_smoke_test else self.loaded.experiment.looks

    @property
    def scale(self) -> dict[str, Any]:
        """The record of the scale axis in study.json; a smoke test has no gate."""
        experiment = self.loaded.experiment
        record = experiment.scale.as_record() if experiment.scale else {}
        return {k: v for k, v in record.items() if k != "stop_if" or not self.is_smoke_test}

    @property
    def notify(self) -> Notify | None:
        """Where messages are sent; a smoke test sends none."""
        return None if self.is_smoke_test else self.loaded.experiment.notify

    @property
    def study(self) -> Study:
        """The study that `create` will write to disk."""
        experiment, runs = self.loaded.experiment, study_dir.study_runs(self.folder, self.runs)
        return Study(
            self.folder,
            experiment.name,
            str(self.options.file),
            0.0,
            experiment.features,
            runs,
            cluster=self.cluster,
            design=experiment.design,
            tune=experiment.tune,
            scale=self.scale,
            measure=self.runs[0].config.measure,
            margins=[(0.0, experiment.margin)],
            plans=[study_dir.plan_of(self.runs, self.looks)],
            notify=self.notify,
        )

    def create(self) -> Study:
        """Create the folders of the study and its runs; existing files stay as they are."""
        experiment, self.existed = self.loaded.experiment, set(list_folder(self.folder))
        return study_dir.create_study(
            self.folder,
            experiment.name,
            self.options.file,
            experiment.features,
            self.runs,
            origins=self.origins_json,
            fields={
                "cluster": self.cluster,
                "design": experiment.design,
                "scale": self.scale,
                "notify": self.notify.model_dump() if self.notify else None,
                **study_dir.plan_fields(self.folder, self.runs, self.looks, experiment.margin),
            },
        )

    def value_origins(self, run: Run) -> dict[str, str]:
        """Return what set each value of a run's configuration, the same for all runs of a cell."""
        return value_origins.of_run(self.loaded, run.features, run.config)

    def origins_json(self, run: Run) -> str:
        """Return the content of a run's origins.json."""
        if run.cell not in self._origins:
            self._origins[run.cell] = json.dumps(self.value_origins(run), indent=1) + "\n"
        return self._origins[run.cell]


def plan(options: Options, console: Console, shown: str) -> None:
    """Show the runs of an experiment as a table, tree or JSON, or its sbatch scripts, schedules or other designs."""
    planned = make_plan(options)
    if shown == "schedules":
        _show_schedules(planned, console)
    elif shown == "designs":
        _show_designs(planned, console)
    elif shown == "sbatch":
        for script in job_scripts(planned):
            print(script)
    else:
        show_plan(planned, console, shown)
        for warning in data_preflight.find_unreached(planned.runs) if shown != "json" else ():
            complain(warning)


def _show_designs(planned: Plan, console: Console) -> None:
    """Print what other designs of the study's features would cost and show."""
    experiment, found = planned.loaded.experiment, planned.forecast
    levels = [len(group) for group in experiment.levels()]
    if len(levels) < 2:
        raise UserError("--compare-designs: the study has fewer than two features, so there is nothing to combine")
    known = list(planned.hours.values())
    runs = found.cells * found.seeds
    choices = compare_designs(levels, found.seeds, runs, sum(known) / len(known) if known else None)
    plan_tables.print_designs(choices, found, console)


def _show_schedules(planned: Plan, console: Console) -> None:
    """Print the learning rates and plot them into the study's folder. Raises RunError if the plot cannot be written."""
    found = lr_schedules.find_schedules(planned.runs)
    plan_tables.print_schedules(found, console)
    for path in lr_schedules.write(found, planned.folder):
        console.print(str(path))
    if len(found) > lr_schedules.MOST:
        console.print(f"the plot shows the first {lr_schedules.MOST} of {len(found)} schedules")


def make_plan(options: Options) -> Plan:
    """Read and expand an experiment; writes nothing. Raises UserError with everything that is wrong in the file."""
    if options.launcher not in LAUNCHERS:
        raise UserError(f"--launcher {options.launcher}: choose one of {', '.join(LAUNCHERS)}")
    loaded = load_experiment(options.file, options.sets)
    runs = matrix.runs(loaded, preflight.Vocabularies().of, follower())
    launcher = launchers.choose(loaded.experiment.launcher if options.launcher == "auto" else options.launcher)
    known = {run.cell for run in runs} | {run.id for run in runs}
    for name in options.only:
        if name not in known:
            raise UserError(f"--only {name}: no such cell; cells: {', '.join(dict.fromkeys(r.cell for r in runs))}")
    batch.check_folder(loaded.experiment.folder, launcher)
    planned = Plan(loaded, runs, loaded.experiment.folder, launcher, options)
    selected_cluster.select(planned.cluster)
    return planned


def show_plan(planned: Plan, console: Console, style: str = "table") -> None:
    """Show a plan as a table or tree with its cost and forecast, or as JSON. Raises UserError for any other format."""
    loaded, runs, folder = planned.loaded, planned.runs, planned.folder
    if style == "json":
        data = plan_tables.as_json(runs, folder, planned.launcher, planned.hours)
        more = {"hours_unit": cost.unit(loaded.experiment.slurm), "budget": loaded.experiment.budget}
        forecast = planned.forecast.as_record()
        found = {"screening": planned.screen, "forecast": forecast, "warnings": data_preflight.find_unreached(runs)}
        print(json.dumps({**data, **more, **found}, indent=2, ensure_ascii=False))  # rich takes minutes for 5,000 runs
        return
    tune = loaded.experiment.tune
    first = [run for run in runs if tune is None or tune.is_tuning(run)]
    if style == "tree":
        console.print(plan_tables.tree(loaded, first, folder))
    elif style == "table":
        plan_tables.print_table(first, folder, planned.hours, console)
    else:
        raise UserError(f"--format {style}: choose table, tree or json")
    for line in planned.screen:
        console.print(line, soft_wrap=True, highlight=False)
    if tune:
        console.print(plan_tables.describe_confirmation(tune, runs), soft_wrap=True, highlight=False)
    most = tune.largest(runs) if tune else runs
    console.print(cost.describe(loaded.experiment, most, planned.hours))
    show_forecast(planned, console)
    if len(loaded.experiment.features) >= MANY_FEATURES:
        console.print("what other designs of these features would cost and show: plan --compare-designs")


def show_forecast(planned: Plan, console: Console) -> None:
    """Print what the study can show."""
    for line in planned.forecast.lines():
        console.print(line, soft_wrap=True, highlight=False)


def job_scripts(planned: Plan) -> list[str]:
    """Return the exact job scripts that `submit` would give to sbatch for all runs of the first stage.

    The scripts contain a placeholder for the token.
    Raises UserError for the local launcher, which has no scripts.
    """
    if planned.launcher == "local":
        raise UserError("--sbatch: the local launcher has no job scripts; add --launcher sbatch or submitit")
    launcher = launchers.make(planned.launcher)
    try:
        cluster = site_limits.array_limits()
    except commands.ControllerError:  # scripts can also be shown on a machine without a cluster
        cluster = site_limits.ArrayLimits(len(planned.runs))
    later = next_stage.find_stages(planned.study, []).later
    runs = [run for run in planned.runs if run.id not in later]
    return [launcher.script(batch) for batch in slurm_preflight.planned_batches(planned.loaded, runs, cluster)]


def check_plan(planned: Plan) -> list[str]:
    """Run the preflight that `submit` would run with the same options, and return lines that describe the corpora.

    Raises UserError with every finding.
    """
    return preflight.check_study(planned.loaded, planned.runs, planned.launcher, runs_to_queue(planned))


def runs_to_queue(planned: Plan) -> list[Run]:
    """Return the runs that a submit would queue now.

    Raises UserError for an unknown name in `--rerun`, or if runs of the study were trained on different data or would
    be hidden.
    """
    study, options = planned.study, planned.options
    states = refuse_to_hide(planned, study)
    again = [run.id for run in selection.find_runs(study, options.rerun)]
    changed_inputs.refuse_changed_inputs(planned.runs, states, again)
    held = next_stage.find_stages(study, states).held
    chosen = selection.select(states, options.retry, options.only, again, held=held).chosen
    ids = {state.run.id for state in chosen}
    return [run for run in planned.runs if run.id in ids]


def refuse_to_hide(planned: Plan, study: Study) -> list[RunState]:
    """Return the states of the runs of the study that is planned.

    Raises UserError if the plan would hide active runs: runs on another cluster, or runs not in the plan.
    """
    try:
        before = study_dir.load_study(planned.folder)
    except UserError:  # the study does not exist, or this submit rewrites it
        return study_state.collect(study)
    ids = {run.id for run in study.runs}
    others = [run for run in before.runs if run.id not in ids]
    states = study_state.collect(replace(before, runs=[*study.runs, *others]))
    active = [state.run.id for state in states if state.active]
    selected_cluster.select(planned.cluster)
    if active and before.cluster != planned.cluster:
        place = f"on cluster {before.cluster}" if before.cluster else "here"
        raise UserError(
            f"{planned.folder}: {count(len(active), 'run')} {'is' if len(active) == 1 else 'are'} queued or running "
            f"{place} ({list_names(active)}); wait for them or cancel them, or give the study another name"
        )
    hidden = sorted(set(active) - ids)
    if hidden:
        raise UserError(
            f"{planned.folder}: queued or running: {count(len(hidden), 'run')} with settings that the file no longer "
            f"has ({list_names(hidden)}); cancel them first (cancel RUN or --all), or give the study another name"
        )
    return states[: len(study.runs)] if before.cluster == planned.cluster else study_state.collect(study)
