"""The verb `submit`: check, create, claim and queue runs; with --wait, stay until all have ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import cost, run_evidence, run_state, study_state
from ablatrix.orchestrator.store import code_snapshot, job_log, log_tail, provenance, study_dir
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.submit import (
    changed_inputs,
    earlier_runs,
    notifications,
    preflight,
    queueing,
    selection,
    wave_order,
    waves,
)
from ablatrix.orchestrator.submit.devices import find_devices
from ablatrix.orchestrator.submit.local_queue import LocalQueue
from ablatrix.orchestrator.submit.notifications import Notifier
from ablatrix.orchestrator.terminal import interrupts, live, printing
from ablatrix.orchestrator.terminal.printing import open_console
from ablatrix.orchestrator.verbs.plan import (
    Options,
    Plan,
    make_plan,
    refuse_to_hide,
    runs_to_queue,
    show_forecast,
    show_plan,
)
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.slurm.batch import Batch
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study
    from ablatrix.orchestrator.submit.selection import Selection


def submit(options: Options, console: Console, as_json: bool = False) -> int:
    """Queue the runs of an experiment that are not done; return the exit code, 1 if a run of the study has failed.

    as_json: print the states of all runs, or with `dry_run` the plan, as JSON to stdout, which `console` then does not
    use. Raises UserError or RunError.
    """
    plan = make_plan(options)
    _check_devices(plan)
    chosen = runs_to_queue(plan)
    if options.dry_run or chosen:  # the checks take seconds, and a repeated submit often has nothing to do
        for line in preflight.check_study(plan.loaded, plan.runs, plan.launcher, chosen):
            console.print(line, soft_wrap=True, highlight=False)
    if options.dry_run:
        _describe_earlier(plan, console)
        show_plan(plan, open_console() if as_json else console, "json" if as_json else "table")
        return 0
    if options.smoke:
        _require_smoke_test(plan, console)
        refuse_to_hide(plan, plan.study)  # the smoke test may have taken an hour
    if not options.over_budget:
        cost.require_within_budget(plan.loaded.experiment, chosen, plan.hours)
    if chosen:
        show_forecast(plan, console)
    before = {state.run.id: state.attempt for state in study_state.collect(plan.study)} if as_json else {}
    states = run_plan(plan, console)
    if as_json:
        _print_outcome(plan, study_state.collect(plan.study), before)
    broken = [state for state in states if state.state in ("failed", "lost")]
    for state in broken:
        console.print(f"{state.run.id}: {state.state}: {state.reason} (--retry reruns it)")
    if plan.launcher == "local":
        _require_started(states, plan.folder)
    return int(bool(broken))


def run_plan(plan: Plan, console: Console) -> list[RunState]:
    """Create the study, queue its runs, and wait if the options ask for it.

    Return the states of all runs, without those that Slurm has just been given.
    """
    _describe_earlier(plan, console)
    study, selected, states = _select(plan, plan.create(), console)
    queueing.restore_snapshots(study)
    first = selected.chosen
    while selected.chosen:
        _launch(plan, study, selected, console)
        if plan.launcher == "local":
            _notify(study)
        if plan.launcher != "local" or not plan.options.wait or not next_stage.has_stages(study):
            break
        plan.options = replace(plan.options, retry=False, rerun=())  # do not retry a run that fails again
        study, selected, _ = _select(plan, study, console)
    if plan.options.wait and plan.launcher != "local":
        command = f"{program()} status {shlex.quote(str(study.folder))} --watch"
        with interrupts.explained(f"stopped waiting; the runs continue in Slurm. Check on them with: {command}"):
            live.watch(study, console, waves.keep_going(study, console.print))
        _notify(study)
    elif plan.options.wait and not first and any(state.active for state in states):
        with interrupts.explained("stopped waiting; the runs continue in the submit that started them"):
            live.watch(study, console, lambda states, scheduler: False)
    if plan.options.wait or (first and plan.launcher == "local"):
        return study_state.collect(study)
    queued = {state.run.id for state in first}
    return [state for state in states if state.run.id not in queued]


def _print_outcome(plan: Plan, states: Sequence[RunState], before: Mapping[str, int]) -> None:
    """Print the states of all runs and the ids of those queued by this submit as JSON. before: run id -> attempt."""
    queued = [state.run.id for state in states if state.attempt > before.get(state.run.id, 0)]
    head = {"study": plan.loaded.experiment.name, "folder": str(plan.folder), "launcher": plan.launcher}
    printing.print_json({**head, "queued": queued, **run_state.as_record(states, None)})


def _notify(study: Study) -> None:
    """Send the messages that are due now that runs have ended."""
    if study.notify:
        states = study_state.collect(study)
        stages = next_stage.find_stages(study, states)
        Notifier(study).send(states, stages, ended=notifications.is_over(states, stages))


def _select(plan: Plan, study: Study, console: Console) -> tuple[Study, Selection, list[RunState]]:
    """Record jobs found since, release held ones, select the runs to queue and set their old results aside.

    Print the selection. Return the study, with the folders of these runs recreated, the selection, and the states of
    all runs.
    """
    options, scheduler = plan.options, Scheduler()
    states = study_state.collect(study, scheduler)
    queueing.adopt(states)
    if plan.launcher != "local" and any(state.attempt for state in states):
        queueing.release_held(study, scheduler.jobs, console.print)
    order = wave_order.read(study)
    waiting = [state.run.id for state in wave_order.find_waiting(study, order, states)]  # queued even without --retry
    stages = next_stage.find_stages(study, states)
    found = selection.select(states, options.retry, options.only, waiting, study=study.name, held=stages.held)
    again = selection.find_runs(study, options.rerun)
    for run in again:  # start from step 0
        plan.earlier.pop(run.id, None)
    incomplete = [state.run for state in found.chosen if state.state == "done"]
    aside = {run.id: run for run in (*again, *incomplete)}
    if aside:
        selection.put_aside(aside.values(), states)
        study = plan.create()
        states = study_state.collect(study, scheduler)
        stages = next_stage.find_stages(study, states)
        found = selection.select(states, options.retry, options.only, waiting, study=study.name, held=stages.held)
    for line in (*stages.lines, *found.describe()):
        console.print(line, soft_wrap=True, highlight=False)
    return study, found, states


def smoke_plan(plan: Plan) -> Plan:
    """Return a plan of every cell's first seed for a few steps, to find in minutes what would fail after hours."""
    seed = plan.runs[0].seed
    runs = [run.shortened(plan.options.smoke) for run in plan.runs if run.seed == seed]
    options = replace(plan.options, rerun=(), wait=True)
    return Plan(plan.loaded, runs, plan.folder / cost.SMOKE, plan.launcher, options)


def _require_smoke_test(plan: Plan, console: Console) -> None:
    """Run the smoke test. Raises RunError unless every requested cell passes."""
    only, smoke = plan.options.only, smoke_plan(plan)
    refuse_to_hide(smoke, smoke.study)
    states = [state for state in run_plan(smoke, console) if not only or state.run.cell in only]
    broken = [f"{state.run.cell} {state.state}: {state.reason}" for state in states if state.state != "done"]
    if broken:
        raise RunError(f"smoke test: {'; '.join(broken)}; nothing else was queued")


def _check_devices(plan: Plan) -> None:
    """Raise UserError for GPUs that this machine does not have, or that Slurm assigns."""
    wanted = plan.options.devices
    if wanted is not None and plan.launcher != "local":
        raise UserError(
            f"--devices {wanted}: Slurm assigns the GPUs of a job; set slurm.gpus_per_node, or --launcher local"
        )
    if wanted is not None:
        find_devices(wanted)


def _require_started(states: Sequence[RunState], folder: Path) -> None:
    """Raise RunError if this process has started runs that ended before their trainer did anything."""
    waiting = [state.run for state in states if state.state == "queued"]
    ours = [run.id for run in waiting if (run_evidence.find_owner(run) or {}).get("pid") == os.getpid()]
    if ours:
        log = job_log.find(folder / ours[0])
        words = log_tail.quote_job_log(log, folder) if log else ""
        raise RunError(
            f"{', '.join(ours)}: ended before the trainer started: {words or f'see {folder / study_dir.LOGS}'}"
        )


def _describe_earlier(plan: Plan, console: Console) -> None:
    """Find earlier runs that stay beside the new ones because settings changed, and print them."""
    if plan.is_smoke_test:
        return
    plan.earlier = earlier_runs.find(plan.folder, plan.runs)
    for line in earlier_runs.describe(plan.runs, plan.earlier):
        console.print(line, soft_wrap=True, highlight=False)


def _launch(plan: Plan, study: Study, selected: Selection, console: Console) -> None:
    """Claim the runs and queue them. Steps that may fail come before the claims, so that no claim is left behind."""
    own = code_snapshot.own_modules([run.config.flat() for run in matrix.first_of_cells(plan.runs).values()])
    code = queueing.take_snapshot(study, own)
    study_dir.remember_last(study.folder)
    if plan.launcher == "local":
        _run_local(plan, study, selected.chosen, code, console)
    else:
        facts = _update_folders(plan, study, {state.run.id for state in (*selected.chosen, *selected.held)})
        queueing.record_facts(selected.held, facts)  # queued by a job, which has no experiment file
        _queue_slurm(plan, study, selected, code, console, facts=facts)


def _update_folders(plan: Plan, study: Study, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Update the folders of these runs: settings and the checkpoint to start from.

    Return the facts for their provenance: fingerprints of their data, the run they continue. Raises RunError.
    """
    runs, inputs = [run for run in plan.runs if run.id in ids], changed_inputs.Inputs()
    found: dict[str, dict[str, Any]] = {}
    study_dir.update_configs(study, [run for run in runs if run.id in plan.existed], plan.origins_json)
    try:
        for run in runs:
            folder, before = study.folder / run.id, plan.earlier.get(run.id)
            found[run.id] = dict(inputs.of(run.cell_config))
            if before and before.start:
                earlier_runs.copy_start(before, folder)
                found[run.id]["continued_from"] = {"run": before.folder.name, "iter": before.start}
    except OSError as error:
        raise RunError(f"cannot write to {error.filename or study.folder}: {error.strerror}") from None
    return found


def _run_local(plan: Plan, study: Study, chosen: Sequence[RunState], code: Path, console: Console) -> None:
    members, experiment = queueing.claim(chosen, console.print), plan.loaded.experiment
    if not members:
        return
    with queueing.released_on_error(members):
        facts = _update_folders(plan, study, {run.id for run, _ in members})
        jobs = [[member] for member in members]
        batch = queueing.prepare(study, jobs, experiment.slurm, code, experiment.export, facts=facts)
        queueing.record(batch, "local", ["" for _ in members])
    run_batch(batch, plan.options.devices, console)


def run_batch(batch: Batch, devices: str | None, console: Console) -> None:
    """Run a batch on this machine, with live progress, until its runs have ended. devices: the value of --devices."""
    queue = LocalQueue(find_devices(devices))
    console.print(
        f"running {count(len(batch.members), 'run')} on this machine: closing the terminal does not stop them, "
        "Ctrl-C does (each run keeps its checkpoint)"
    )
    with live.LiveStatus(batch.study, console, Scheduler(), Notifier(batch.study).send) as shown:
        try:
            queue.run(batch, shown.tick)
        except RunError:
            queueing.release(queue.not_started, "not started, because the first runs failed alike")
            raise
        finally:
            interrupts.ignoring_lost_output(shown.refresh)


def _queue_slurm(
    plan: Plan, study: Study, selected: Selection, code: Path, console: Console, *, facts: queueing.Facts
) -> None:
    experiment, before = plan.loaded.experiment, wave_order.read(study)
    order = wave_order.Order(
        launcher=plan.launcher,
        settings=experiment.slurm,
        exports=list(experiment.export),
        code=code.resolve(),
        surroundings=provenance.collect(code),
        report=plan.options.with_report and not plan.is_smoke_test,
        budget=None if plan.options.over_budget else experiment.budget,
        problem=before.problem if before and before.blocked else "",
    )
    if waves.queue(study, order, selected.chosen, selected.all_active, console.print, facts=facts):
        console.print(f"follow them with: {program()} status {shlex.quote(str(study.folder))} --watch")
