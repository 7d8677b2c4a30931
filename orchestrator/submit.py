"""The verb `submit`: check, create, claim, queue, and where it is asked for, wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from orchestrator import budget, checks, display, experiment, launchers, matrix, rundir, slurm, status, submission
from orchestrator.experiment import Loaded
from orchestrator.launchers.local import LocalQueue, find_devices
from orchestrator.matrix import Run
from orchestrator.rundir import Study
from orchestrator.status import RunState, Scheduler
from trainer.errors import RunError, UserError


@dataclass(frozen=True)
class Options:
    """What the command line of `submit` says."""

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
    """A checked study that is ready to be created."""

    loaded: Loaded
    runs: list[Run]
    folder: Path
    launcher: str
    options: Options = field(default_factory=lambda: Options(Path()))


def make_plan(options: Options) -> Plan:
    """Read and expand an experiment; touches nothing. Raises UserError with all that is wrong in the file."""
    loaded = experiment.load(options.file, options.sets)
    runs = matrix.runs(loaded, checks.vocabulary)
    launcher = launchers.choose(loaded.experiment.launcher if options.launcher == "auto" else options.launcher)
    known = {run.cell for run in runs} | {run.id for run in runs}
    for name in options.only:
        if name not in known:
            raise UserError(f"--only {name}: no such cell; cells: {', '.join(dict.fromkeys(r.cell for r in runs))}")
    return Plan(loaded, runs, loaded.experiment.folder, launcher, options)


def show(plan: Plan, console: Console) -> None:
    """The plan as a table, and what it will cost."""
    experiment = plan.loaded.experiment
    hours = budget.hours_per_run(plan.folder, plan.runs, experiment)
    console.print(display.plan_table(plan.runs, plan.folder, hours))
    console.print(budget.summary(experiment, plan.folder, plan.runs), highlight=False)


def check(plan: Plan) -> None:
    """The preflight. Raises UserError with every finding."""
    checks.preflight(plan.loaded, plan.runs, plan.launcher)


def _anything_to_run(plan: Plan) -> bool:
    """Would a submit queue a run? The checks take seconds, and a second submit often has nothing to do."""
    if plan.options.rerun or not (plan.folder / rundir.STUDY).exists():
        return True
    study = replace(rundir.load_study(plan.folder), runs=rundir.study_runs(plan.folder, plan.runs))
    return bool(submission.select(status.collect(study), plan.options.retry, plan.options.only).chosen)


def smoke_plan(plan: Plan) -> Plan:
    """Every cell, first seed, for a few steps: shows within minutes what would fail after hours."""
    steps, seed = plan.options.smoke, plan.loaded.experiment.seed_list[0]
    runs = [_shortened(run, steps) for run in plan.runs if run.seed == seed]
    return Plan(
        plan.loaded, runs, plan.folder / budget.SMOKE, plan.launcher, replace(plan.options, rerun=(), wait=True)
    )


def _shortened(run: Run, steps: int) -> Run:
    trainer = run.config.trainer
    update = {"max_iters": steps, "warmup_steps": min(trainer.warmup_steps, steps), "log_interval": 1, "eval_tokens": 1}
    config = run.config.model_copy(update={"trainer": trainer.model_copy(update=update)})
    return replace(run, config=config)


def submit(options: Options, console: Console) -> list[RunState]:
    """Carry out `submit` and return the states of the study's runs. Raises UserError or RunError."""
    plan = make_plan(options)
    if options.dry_run or _anything_to_run(plan):
        check(plan)
    if options.dry_run:
        show(plan, console)
        return []
    if options.smoke:
        states = run_plan(smoke_plan(plan), console)
        wanted = [state for state in states if not options.only or state.run.cell in options.only]
        broken = [state for state in wanted if state.state != "done"]
        if broken:
            told = "; ".join(f"{state.run.cell} {state.state}: {state.reason}" for state in broken)
            raise RunError(f"smoke test: {told}; nothing else was queued")
    if not options.over_budget:
        budget.check(plan.loaded.experiment, plan.folder, plan.runs)
    states = run_plan(plan, console)
    for state in states:
        if state.state in ("failed", "lost"):
            console.print(f"{state.run.id}: {state.state}: {state.reason} (--retry runs it again)", highlight=False)
    return states


def run_plan(plan: Plan, console: Console) -> list[RunState]:
    """Create the study, queue what is to be queued, and wait where that is asked for."""
    features = plan.loaded.experiment.features
    study = rundir.create_study(plan.folder, plan.loaded.experiment.name, plan.options.file, features, plan.runs)
    if plan.options.rerun:
        submission.put_aside(study, plan.options.rerun)
        study = rundir.create_study(plan.folder, plan.loaded.experiment.name, plan.options.file, features, plan.runs)
    states = status.collect(study)
    submission.adopt(states)
    selection = submission.select(states, plan.options.retry, plan.options.only, plan.options.rerun)
    _say(selection, console)
    if plan.launcher == "local":
        _run_local(plan, study, submission.claim(selection.chosen), console)
    else:
        largest_array = slurm.max_array_size()  # asked before claiming: a silent controller must leave nothing behind
        _queue_slurm(plan, study, submission.claim(selection.chosen), largest_array, console)
    if plan.options.wait and plan.launcher != "local":
        display.watch(study, console, until_settled=True)
    return status.collect(study)


def _say(selection: submission.Selection, console: Console) -> None:
    """What is left alone, and why."""
    for number, text in (
        (len(selection.failed), "failed, lost or cancelled before; --retry runs them again"),
        (len(selection.done), "done already, results reused"),
        (len(selection.active), "queued or running already"),
        (len(selection.chosen), "to run"),
    ):
        if number:
            console.print(f"{number} {text}", highlight=False)


def _run_local(plan: Plan, study: Study, members: launchers.Members, console: Console) -> None:
    if not members:
        return
    settings = plan.loaded.experiment.slurm
    jobs = [[member] for member in members]
    batch = submission.prepare(study, jobs, settings)
    submission.record(batch, "local", ["" for _ in jobs])
    queue = LocalQueue(find_devices(plan.options.devices))
    with display.LiveStatus(study, console, Scheduler()) as live:
        try:
            queue.run(batch, live.tick)
        finally:
            live.refresh()


def _queue_slurm(plan: Plan, study: Study, members: launchers.Members, largest_array: int, console: Console) -> None:
    if not members:
        return
    launcher = launchers.make(plan.launcher)
    settings = plan.loaded.experiment.slurm
    arrays, batch = [], None
    for jobs in submission.split(members, settings.runs_per_job, largest_array):
        batch = submission.prepare(study, jobs, settings)
        arrays.append(submission.queue(launcher, batch)[0].partition("_")[0])
        runs = sum(len(job) for job in jobs)
        console.print(f"queued {runs} runs as job {arrays[-1]} ({launcher.name})", highlight=False)
    if batch and plan.options.with_report and plan.folder == plan.loaded.experiment.folder:
        job = submission.queue_report(batch, arrays)
        console.print(f"queued the report behind them as job {job}", highlight=False)
    console.print(f"follow them with: python -m orchestrator status {study.folder} --watch", highlight=False)


def scripts(plan: Plan) -> list[str]:
    """The exact job scripts that `submit` would give to sbatch for all runs, with a placeholder for the token.

    Raises UserError for the local launcher, which has none.
    """
    if plan.launcher == "local":
        raise UserError("--sbatch: the local launcher has no job scripts; add --launcher sbatch or submitit")
    launcher = launchers.make(plan.launcher)
    runs = rundir.study_runs(plan.folder, plan.runs)
    study = Study(plan.folder, plan.loaded.experiment.name, str(plan.options.file), 0.0, {}, runs)
    settings = plan.loaded.experiment.slurm
    code = plan.folder.parent / rundir.SNAPSHOTS / "CODE_SNAPSHOT"
    arrays = submission.split([(run, 1) for run in runs], settings.runs_per_job, len(runs))
    return [launcher.script(launchers.Batch(study, jobs, "TOKEN", settings, code)) for jobs in arrays]
