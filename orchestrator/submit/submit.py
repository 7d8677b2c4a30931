"""The verb `submit`: check, create, claim, queue, and where it is asked for, wait."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ablatrix.orchestrator.slurm import batch, commands, launchers, site_limits
from ablatrix.orchestrator.slurm.queue_view import Scheduler
from ablatrix.orchestrator.status import cost, run_evidence, study_state
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import code_snapshot, job_log, log_tail, provenance, selected_cluster, study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study import matrix, run_config, value_origins
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import earlier_runs, plan_tables, preflight, queueing, slurm_preflight, waves
from ablatrix.orchestrator.submit.earlier_runs import Earlier
from ablatrix.orchestrator.submit.local_queue import LocalQueue, find_devices
from ablatrix.orchestrator.terminal import interrupts, tables
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.program import program


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
    earlier: dict[str, Earlier] = field(default_factory=dict)  # run id -> the run that it takes the place of

    @property
    def cluster(self) -> str:
        """The cluster that the jobs go to, '' for the one of this machine."""
        return "" if self.launcher == "local" else self.loaded.experiment.slurm.clusters or ""


def make_plan(options: Options) -> Plan:
    """Read and expand an experiment; touches nothing. Raises UserError with all that is wrong in the file."""
    loaded = load_experiment(options.file, options.sets)
    runs = matrix.runs(loaded, preflight.vocabulary)
    launcher = launchers.choose(loaded.experiment.launcher if options.launcher == "auto" else options.launcher)
    known = {run.cell for run in runs} | {run.id for run in runs}
    for name in options.only:
        if name not in known:
            raise UserError(f"--only {name}: no such cell; cells: {', '.join(dict.fromkeys(r.cell for r in runs))}")
    batch.check_folder(loaded.experiment.folder, launcher)
    plan = Plan(loaded, runs, loaded.experiment.folder, launcher, options)
    selected_cluster.select(plan.cluster)
    return plan


def show(plan: Plan, console: Console, style: str = "table") -> None:
    """The plan as a table or a tree with what it will cost, or as JSON. Raises UserError for another format."""
    experiment = plan.loaded.experiment
    if style == "json":
        console.print_json(data=plan_tables.as_json(plan.runs, plan.folder, plan.launcher))
        return
    if style == "tree":
        console.print(plan_tables.tree(plan.loaded, plan.runs, plan.folder))
    elif style == "table":
        hours = cost.hours_per_run(plan.folder, plan.runs, experiment)
        table = tables.plan_table(plan.runs, plan.folder, hours)
        console.print(tables.fit_columns(table, console.width, tables.PLAN_DROPPED))
    else:
        raise UserError(f"--format {style}: choose table, tree or json")
    console.print(cost.summary(experiment, plan.folder, plan.runs))


def show_run(plan: Plan, name: str | None, console: Console) -> None:
    """The configuration of a planned run, and who set each value. Raises UserError for an unknown name."""
    study = _planned_study(plan)
    chosen = study.matching(name)[0].id if name else plan.runs[0].id
    run = next(run for run in plan.runs if run.id == chosen)
    console.print(f"{run.id}, as {plan.loaded.file} plans it")
    values = value_origins.flat(run.config, plan.folder / run.id)
    tables.print_config(values, value_origins.of_run(plan.loaded, run.features, run.config), console)


def check(plan: Plan) -> None:
    """The preflight that `submit` would do with the same options. Raises UserError with every finding."""
    preflight.preflight(plan.loaded, plan.runs, plan.launcher, _would_run(plan))


def describe_waves(plan: Plan) -> str:
    """A sentence where the site's limits let only a part of the study be queued at once, else ''."""
    if plan.launcher == "local":
        return ""
    settings = plan.loaded.experiment.slurm
    room, jobs = site_limits.find_room(settings), -(-len(plan.runs) // settings.runs_per_job)
    if room.jobs is None or room.jobs > jobs:
        return ""
    fits = max(0, room.jobs - 1)  # one place is for the job that goes on
    return f"{fits} of its {jobs} jobs fit into the queue now ({room.reason}); the rest follows in waves"


def _planned_study(plan: Plan) -> Study:
    """The study as it would be on disk."""
    runs = study_dir.study_runs(plan.folder, plan.runs)
    name, file = plan.loaded.experiment.name, str(plan.options.file)
    return Study(plan.folder, name, file, 0.0, {}, runs, cluster=plan.cluster)


def _would_run(plan: Plan) -> list[Run]:
    """The runs that a submit would queue now.

    Raises UserError for an unknown name in `--rerun`, and where runs of the study were trained on other data.
    """
    _refuse_second_cluster(plan)
    study, options = _planned_study(plan), plan.options
    again = [run.id for run in queueing.named(study, options.rerun)]
    states = study_state.collect(study)
    earlier_runs.refuse_changed_inputs(plan.runs, states, again)
    chosen = queueing.select(states, options.retry, options.only, again).chosen
    ids = {state.run.id for state in chosen}
    return [run for run in plan.runs if run.id in ids]


def smoke_plan(plan: Plan) -> Plan:
    """Every cell, first seed, for a few steps: shows within minutes what would fail after hours."""
    steps, seed = plan.options.smoke, plan.loaded.experiment.seed_list[0]
    runs = [_shortened(run, steps) for run in plan.runs if run.seed == seed]
    options = replace(plan.options, rerun=(), wait=True)
    return Plan(plan.loaded, runs, plan.folder / cost.SMOKE, plan.launcher, options)


def _shortened(run: Run, steps: int) -> Run:
    return replace(run, config=run_config.shortened(run.config, steps))


def submit(options: Options, console: Console) -> list[RunState]:
    """Carry out `submit` and return the states of the study's runs. Raises UserError or RunError."""
    plan = make_plan(options)
    _check_devices(plan)
    chosen = _would_run(plan)
    if options.dry_run or chosen:  # a second submit often has nothing to do, and the checks take seconds
        preflight.preflight(plan.loaded, plan.runs, plan.launcher, chosen)
    if options.dry_run:
        _describe_earlier(plan, console)
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
        cost.check(plan.loaded.experiment, plan.folder, chosen)
    states = run_plan(plan, console)
    for state in states:
        if state.state in ("failed", "lost"):
            console.print(f"{state.run.id}: {state.state}: {state.reason} (--retry runs it again)")
    if plan.launcher == "local":
        _require_begun(states, plan.folder)
    return states


def _check_devices(plan: Plan) -> None:
    """Raise UserError for GPUs that are not here, or where Slurm assigns them."""
    wanted = plan.options.devices
    if wanted is not None and plan.launcher != "local":
        raise UserError(
            f"--devices {wanted}: Slurm assigns the GPUs of a job; set slurm.gpus_per_node, or --launcher local"
        )
    if wanted is not None:
        find_devices(wanted)


def _require_begun(states: list[RunState], folder: Path) -> None:
    """Raises RunError where this process has started runs here that ended before they could say a word."""
    waiting = [state.run for state in states if state.state == "queued"]
    ours = [run.id for run in waiting if (run_evidence.find_owner(run) or {}).get("pid") == os.getpid()]
    if ours:
        log = job_log.find(folder / ours[0])
        words = log_tail.quote_job_log(log, folder) if log else ""
        raise RunError(
            f"{', '.join(ours)}: ended before the trainer started: {words or f'see {folder / study_dir.LOGS}'}"
        )


def run_plan(plan: Plan, console: Console) -> list[RunState]:
    """Create the study, queue what is to be queued, and wait where that is asked for."""
    _refuse_to_hide(plan)
    _describe_earlier(plan, console)
    study = _create(plan)
    if plan.options.rerun:
        for run in queueing.named(study, plan.options.rerun):  # from step 0
            plan.earlier.pop(run.id, None)
        queueing.put_aside(study, plan.options.rerun)
        study = _create(plan)
    scheduler = Scheduler()
    states = study_state.collect(study, scheduler)
    queueing.adopt(states)
    held = "" if plan.launcher == "local" else queueing.release_held(study, scheduler.jobs)
    if held:
        console.print(held)
    waiting = [state.run.id for state in waves.find_waiting(study, states)]  # for room in the queue, --retry or not
    selection = queueing.select(states, plan.options.retry, plan.options.only, waiting)
    incomplete = [state.run.id for state in selection.chosen if state.state == "done"]
    if incomplete:  # what is left of them is put aside
        queueing.put_aside(study, incomplete)
        study = _create(plan)
        selection = queueing.select(study_state.collect(study), plan.options.retry, plan.options.only, waiting)
    _say(selection, console)
    queueing.mend_snapshots(study)
    if selection.chosen:
        _launch(plan, study, selection, console)
    if plan.options.wait and plan.launcher != "local":
        again = f"{program()} status {shlex.quote(str(study.folder))} --watch"
        with interrupts.explained(f"stopped waiting; the runs go on in Slurm. Look again with: {again}"):
            tables.watch(study, console, waves.keep_going(study, console.print))
    return study_state.collect(study)


def _describe_earlier(plan: Plan, console: Console) -> None:
    """Look for finished runs that the new settings leave beside, and say so."""
    if plan.folder != plan.loaded.experiment.folder:  # a smoke test
        return
    plan.earlier = earlier_runs.find(plan.folder, plan.runs)
    for line in earlier_runs.describe(plan.runs, plan.earlier):
        console.print(line, soft_wrap=True, highlight=False)


def _create(plan: Plan) -> Study:
    experiment, set_by = plan.loaded.experiment, partial(_set_by, plan)
    return study_dir.create_study(
        plan.folder, experiment.name, plan.options.file, experiment.features, plan.runs, set_by, plan.cluster
    )


def _set_by(plan: Plan, run: Run) -> dict[str, str]:
    """Who set each value of a run's configuration."""
    return value_origins.of_run(plan.loaded, run.features, run.config)


def _refuse_to_hide(plan: Plan) -> None:
    """Raises UserError where runs of the study's earlier plan are at work that the new plan does not know."""
    if not (plan.folder / study_dir.STUDY).exists():
        return
    try:
        earlier = study_dir.load_study(plan.folder)
    except UserError:  # damaged: this submit writes it anew
        return
    known = {run.id for run in plan.runs}
    hidden = [s.run.id for s in study_state.collect(earlier) if s.active and s.run.id not in known]
    if hidden:
        raise UserError(
            f"{plan.folder}: {len(hidden)} runs with settings that the file no longer has are queued or running "
            f"({', '.join(hidden[:4])}); cancel them first (cancel RUN or --all), or give the study another name"
        )


def _refuse_second_cluster(plan: Plan) -> None:
    """Raise UserError where runs of the study are at work on another cluster: only one can be asked about them."""
    try:
        before = study_dir.load_study(plan.folder)
    except UserError:  # it does not exist, or this submit writes it again
        return
    if before.cluster != plan.cluster:
        active = [state.run.id for state in study_state.collect(before) if state.active]
        place = f"on cluster {before.cluster}" if before.cluster else "here"
        if active:
            raise UserError(
                f"{plan.folder}: {len(active)} runs are queued or running {place} "
                f"({', '.join(active[:4])}); wait for them or cancel them, or give the study another name"
            )
    selected_cluster.select(plan.cluster)


def _say(selection: queueing.Selection, console: Console) -> None:
    """What is left alone, and why."""
    for number, text in (
        (len(selection.failed), "failed, lost or cancelled before; --retry runs them again"),
        (len(selection.done), "done already, results reused"),
        (len(selection.active), "queued or running already"),
        (len(selection.chosen), "to run"),
    ):
        if number:
            console.print(f"{number} {text}")


def _launch(plan: Plan, study: Study, selection: queueing.Selection, console: Console) -> None:
    """Claim the runs and queue them. What can fail before the claims, fails before: they must not be left behind."""
    own = code_snapshot.own_modules([value_origins.flat(run.config) for run in plan.runs])
    code = queueing.take_snapshot(study, own)
    study_dir.remember_last(study.folder)
    if plan.launcher == "local":
        _run_local(plan, study, _claim(plan, study, selection.chosen, console), code, console)
    else:
        _queue_slurm(plan, study, selection, code, console)


def _claim(plan: Plan, study: Study, chosen: Sequence[RunState], console: Console) -> batch.Members:
    """The runs that are ours to queue now, with what the file says of them today."""
    members = queueing.claim(chosen)
    taken = queueing.describe_taken(chosen, members)
    if taken:
        console.print(taken)
    ids = {run.id for run, _ in members}
    with queueing.released_on_error(members):
        _renew(plan, study, ids)
    return members


def _renew(plan: Plan, study: Study, ids: set[str]) -> None:
    """Bring the folders of these runs up to date: settings, what is known of their data, where they start from.

    Raises OSError, RunError.
    """
    runs, inputs = [run for run in plan.runs if run.id in ids], earlier_runs.Inputs()
    study_dir.update_configs(study, runs, partial(_set_by, plan))
    for run in runs:
        folder, facts, before = study.folder / run.id, dict[str, Any](inputs.of(run)), plan.earlier.get(run.id)
        if before and before.start:
            earlier_runs.copy_start(before, folder)
            facts["continued_from"] = {"run": before.folder.name, "iter": before.start}
        provenance.add_facts(folder, facts)


def _run_local(plan: Plan, study: Study, members: batch.Members, code: Path, console: Console) -> None:
    if not members:
        return
    jobs = [[member] for member in members]
    with queueing.released_on_error(members):
        experiment = plan.loaded.experiment
        batch = queueing.prepare(study, jobs, experiment.slurm, code, experiment.export)
        queueing.record(batch, "local", ["" for _ in jobs])
    queue = LocalQueue(find_devices(plan.options.devices))
    console.print(
        f"running {len(members)} runs on this machine: closing the terminal does not stop them, Ctrl-C does "
        "(each run keeps its checkpoint)"
    )
    with tables.LiveStatus(study, console, Scheduler()) as live:
        try:
            queue.run(batch, live.tick)
        except RunError:
            queueing.release(queue.not_started, "not started, because the first runs failed alike")
            raise
        finally:
            interrupts.ignoring_lost_output(live.refresh)


def _queue_slurm(plan: Plan, study: Study, selection: queueing.Selection, code: Path, console: Console) -> None:
    experiment, before = plan.loaded.experiment, waves.read(study)
    order = waves.Order(
        plan.launcher,
        experiment.slurm,
        experiment.export,
        code.resolve(),
        provenance.collect(code),
        report=plan.options.with_report and plan.folder == experiment.folder,
        problem=before.problem if before and before.blocked else "",
    )
    ids = {state.run.id for state in selection.chosen}
    try:
        _renew(plan, study, ids)
    except OSError as error:
        raise RunError(f"{error.filename or study.folder}: cannot be written: {error.strerror}") from None
    arrays = waves.queue(study, order, selection.chosen, selection.at_work, console.print)
    if arrays:
        console.print(f"follow them with: {program()} status {shlex.quote(str(study.folder))} --watch")


def scripts(plan: Plan) -> list[str]:
    """The exact job scripts that `submit` would give to sbatch for all runs, with a placeholder for the token.

    Raises UserError for the local launcher, which has none.
    """
    if plan.launcher == "local":
        raise UserError("--sbatch: the local launcher has no job scripts; add --launcher sbatch or submitit")
    launcher = launchers.make(plan.launcher)
    try:
        cluster = site_limits.array_limits()
    except commands.ControllerError:  # the scripts can be shown on a machine that has no cluster
        cluster = site_limits.ArrayLimits(len(plan.runs))
    return [launcher.script(batch) for batch in slurm_preflight.planned_batches(plan.loaded, plan.runs, cluster)]
