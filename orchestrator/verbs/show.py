"""The verb `show`: show a run of a study, or a planned run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.store import job_log, log_tail, run_facts, study_dir
from ablatrix.orchestrator.terminal import printing, status_table
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.store.study_dir import Study, StudyRun

WIDEST_VALUE = 40  # characters; wider values do not align the origins
LOG_LINES = 10


def show(
    run: str,
    planned: str | None,
    sets: Sequence[str],
    *,
    study: str | None,
    output: Path,
    console: Console,
    as_json: bool = False,
) -> None:
    """Show a run of a study or, if `run` is an experiment file, one of its planned runs (`planned`, or the first)."""
    if planned or sets or ".yaml" in run or ".yml" in run:
        _show_planned(Options(Path(run), "local", sets), planned, console, as_json)
        return
    found = study_dir.find_study(study, output)
    chosen = found.find_any(run)
    if as_json:
        printing.print_json(_describe_run(found, chosen))
    else:
        _show_run(found, chosen, console)


def _show_planned(options: Options, name: str | None, console: Console, as_json: bool) -> None:
    plan = make_plan(options)
    chosen = plan.study.matching(name)[0].id if name else plan.runs[0].id
    run = next(run for run in plan.runs if run.id == chosen)
    config, origins = run.config.flat(plan.folder / run.id), plan.value_origins(run)
    if as_json:
        printing.print_json({"id": run.id, "cell": run.cell, "seed": run.seed, "config": config, "origins": origins})
        return
    console.print(f"{run.id}, as {plan.loaded.file} plans it")
    _print_config(config, origins, console)


def _describe_run(study: Study, run: StudyRun) -> dict[str, Any]:
    """Return a run's state with its settings, their origins, its command and its files."""
    (state,) = run_state.as_record([study_state.state_of(study, run)], None)["runs"]
    return {
        **state,
        "config": run_facts.read_settings(run.folder),
        "origins": _read_origins(run),
        "command": run_files.read_text(run.folder / run_files.ARGS).strip(),
        "files": sorted(path.name for path in run.folder.glob("[!.]*")),
    }


def _read_origins(run: StudyRun) -> dict[str, Any]:
    return run_files.read_json(run.folder / study_dir.ORIGINS) or {}


def _show_run(study: Study, run: StudyRun, console: Console) -> None:
    """Print a run's state, overrides, configuration, files and the end of its log."""
    status_table.print_states([study_state.state_of(study, run)], str(run.folder), console, study.measure)
    if run in study.runs:  # overrides of runs of an earlier plan are unknown
        overrides = ", ".join(f"{key}={spell(value)}" for key, value in run.overrides.items())
        console.print(f"overrides: {overrides or 'none (the baseline)'}")
    _print_config(run_facts.read_settings(run.folder), _read_origins(run), console)
    command = run_files.read_text(run.folder / run_files.ARGS).strip()
    if command:
        console.print(f"command: {command}", soft_wrap=True)
    console.print(f"files: {', '.join(sorted(path.name for path in run.folder.glob('[!.]*')))}")
    log = job_log.of_unstarted(run.folder) or run.folder / run_files.JOB_OUT
    tail = printing.log_text(log_tail.tail_text(log)).splitlines()[-LOG_LINES:]
    if tail:
        console.print(f"last lines of {log}:", *(f"  {line}" for line in tail), sep="\n")


def _print_config(values: Mapping[str, object], origins: Mapping[str, str], console: Console) -> None:
    """Print every setting with its value and, if known, what set it."""
    words = {key: "" if value is None else spell(value) for key, value in values.items()}
    key_width = max(map(len, words), default=0)
    value_width = min(max(map(len, words.values()), default=0), WIDEST_VALUE)
    for key, text in words.items():
        line = f"{key:{key_width}}  {text:{value_width}}  {origins.get(key, '')}".rstrip()
        console.print(line, soft_wrap=True)
