"""The verbs. Each parses, calls and prints; imports wait until a verb needs them, so that --help is instant."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ablatrix.orchestrator.status import removed_files
from ablatrix.orchestrator.terminal import interrupts
from ablatrix.trainer.rundir.console import visible
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.files import atomic_write, read_bytes
from ablatrix.trainer.rundir.program import program

app = typer.Typer(
    name="orchestrator",
    help="Ablation studies of small GPTs: one YAML file in, jobs on Slurm or this machine, a verdict out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path,
    typer.Argument(help="the experiment: a file, file.yaml#config for one of its configs, or a name on ABLATRIX_PATH"),
]
Target = Annotated[str | None, typer.Argument(help="study folder or name; default: the one submitted last")]
Output = Annotated[Path, typer.Option("--output", help="where studies are")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override; wins over everything")]
LauncherName = Annotated[str, typer.Option("--launcher", help="auto, local, submitit or sbatch")]
StudyOption = Annotated[str | None, typer.Option("--study", help="study folder or name; default: the last one")]
RunName = Annotated[str, typer.Argument(help="run id, the beginning of one, or a cell's name")]

OUT = Path("out")
PIPED_WIDTH = 10_000  # nothing is wrapped or cut where the output is no terminal
LAUNCHERS = ("auto", "local", "submitit", "sbatch")


def main() -> None:
    """Entry point: errors are one line each; exit code 2 for a user's mistake, 1 for a failure, 130 on Ctrl-C."""
    interrupts.raise_on_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes that are no text, a terminal may lack a sign
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except AblatrixError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        print(f"\n{interrupt}" if sys.stderr.isatty() else interrupt, file=sys.stderr)
        sys.exit(interrupts.EXIT_INTERRUPTED)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
    except OSError as error:  # a folder that is full, read-only or gone: no place has more to say of it than this
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; correct this and rerun the command", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: this needs more memory than there is; see ulimit -v and the sizes of the files", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        print("error: this machine lets you start no further thread; see ulimit -u", file=sys.stderr)
        sys.exit(1)


def _console() -> Any:
    from ablatrix.orchestrator.terminal.printing import Terminal

    console = Terminal()
    return console if console.is_terminal else Terminal(width=PIPED_WIDTH)


def _options(file: Path, launcher: str, **rest: Any) -> Any:
    from ablatrix.orchestrator.submit.submit import Options
    from ablatrix.trainer.rundir.errors import UserError

    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: choose one of {', '.join(LAUNCHERS)}")
    return Options(file, launcher, **{name: value for name, value in rest.items() if value is not None})


@app.command()
def plan(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    sbatch: Annotated[bool, typer.Option("--sbatch", help="print the exact job scripts")] = False,
    style: Annotated[str, typer.Option("--format", help="table, tree or json")] = "table",
    schedules: Annotated[bool, typer.Option("--schedules", help="draw the learning rates of all cells")] = False,
) -> None:
    """Show the runs of an experiment, without creating or queueing anything."""
    from ablatrix.orchestrator.submit import submit

    planned = submit.make_plan(_options(file, launcher, sets=sets))
    if schedules:
        from ablatrix.orchestrator.report import lr_schedules as drawing

        drawing.show(planned.runs, planned.folder, _console())
    elif sbatch:
        for script in submit.scripts(planned):
            print(script)
    else:
        submit.show(planned, _console(), style)


@app.command()
def submit(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, then show the plan only")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="CELL", help="only this cell (repeatable)")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="run failed, lost and cancelled runs again")] = False,
    rerun: Annotated[list[str] | None, typer.Option(metavar="RUN", help="put a run's result aside, run anew")] = None,
    smoke: Annotated[int, typer.Option(metavar="N", min=0, help="every cell N steps first")] = 0,
    devices: Annotated[str | None, typer.Option("-d", "--devices", help="GPUs of this machine, such as 0,1")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="queue no report job behind the runs")] = False,
    over_budget: Annotated[bool, typer.Option("--over-budget", help="more GPU-hours than `budget:` allows")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="stay until all runs have ended, with live progress")] = False,
) -> None:
    """Run an experiment: on Slurm where sbatch is, else on this machine. What is done is not run twice."""
    from ablatrix.orchestrator.submit.submit import submit as carry_out

    options = _options(
        file,
        launcher,
        sets=sets,
        dry_run=dry_run,
        only=only,
        retry=retry,
        rerun=rerun,
        smoke=smoke,
        devices=devices,
        wait=wait,
        with_report=not no_report,
        over_budget=over_budget,
    )
    states = carry_out(options, _console())
    if any(state.state in ("failed", "lost") for state in states):
        raise typer.Exit(1)


@app.command()
def status(
    study: Target = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="refresh until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
    everything: Annotated[bool, typer.Option("--all", help="a line for every run of a large study")] = False,
    output: Output = OUT,
) -> None:
    """The truth about each run: files first, then the scheduler."""
    from ablatrix.orchestrator.slurm import queue_view
    from ablatrix.orchestrator.status import run_state, study_state
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.submit import early_failures, waves
    from ablatrix.orchestrator.terminal import tables

    found = study_dir.find_study(study, output)
    if watch:
        with interrupts.explained("stopped watching; the runs go on"):
            tables.watch(found, _console())
        return
    scheduler = queue_view.Scheduler()
    states = study_state.collect(found, scheduler)
    if as_json:
        print(run_state.as_json(states, scheduler.silent_since))
        return
    console = _console()
    tables.print_states(states, str(found.folder), console, found.measure, everything)
    console.print(tables.summary_line(states, scheduler), highlight=False)
    for line in waves.describe(found, states, scheduler.jobs):
        console.print(line, soft_wrap=True, highlight=False)
    for line in (*removed_files.of_study(found, states), early_failures.describe_alike(states, found.folder)):
        if line:
            console.print(line, soft_wrap=True)


@app.command()
def report(
    studies: Annotated[list[str] | None, typer.Argument(help="study folders or names; default: the last one")] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="curves with zoom and hover in report.html")
    ] = False,
    output: Output = OUT,
) -> None:
    """Compare the cells: tables, plots and a verdict, written into the study's report/ folder.

    Several studies are also put side by side.
    """
    from ablatrix.orchestrator.report import build as reporting
    from ablatrix.orchestrator.status import run_state, study_state
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.terminal import tables

    found = [study_dir.find_study(name, output) for name in studies or (None,)]
    states = []
    for one in found:
        looked = study_state.collect(one)
        states.append(run_state.reasons(looked))
        for line in removed_files.list_all(one, looked):
            _console().print(line, soft_wrap=True)
        tables.print_verdict(reporting.build(one.folder, states[-1], interactive), _console())
    if len(found) > 1:
        tables.print_verdict(reporting.compare([one.folder for one in found], states), _console())


@app.command()
def check(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="also for failed, lost and cancelled runs")] = False,
) -> None:
    """Everything that can be known to fail before it is queued, all at once. `submit` does this too."""
    from ablatrix.orchestrator.study import json_schema as schema_module
    from ablatrix.orchestrator.submit import submit

    planned = submit.make_plan(_options(file, launcher, sets=sets, retry=retry))
    submit.check(planned)
    cells, seeds = (list(dict.fromkeys(getattr(run, of) for run in planned.runs)) for of in ("cell", "seed"))
    shown = ", ".join(map(str, seeds[:10])) + (f", ... {seeds[-1]}" if seeds[10:] else "")
    print(
        f"{file}: {len(planned.runs)} runs (cells: {len(cells)}; seeds: {shown}), "
        f"nothing found that would fail ({planned.launcher})"
    )
    waves = submit.describe_waves(planned)
    if waves:
        print(f"note: {waves}")
    old = schema_module.outdated(planned.loaded.source.path)
    if old:
        print(f"note: {old} is another version's, editors may be wrong; renew it with: {_schema_command(old)}")


@app.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the run ends")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="how many; 0: all")] = 50,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """What a run printed."""
    from ablatrix.orchestrator.slurm import queue_view
    from ablatrix.orchestrator.status import study_state
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.terminal import logs as inspection
    from ablatrix.orchestrator.terminal import printing

    found = study_dir.find_study(study, output)
    chosen = found.find_any(run)
    if not follow:
        print(printing.log_text(inspection.log_text(chosen, lines)))
        return
    scheduler = queue_view.Scheduler()
    with interrupts.explained("stopped following; the run goes on"):
        for text in inspection.follow(chosen, lambda: not study_state.state_of(found, chosen, scheduler).active):
            print(printing.log_text(text), end="", flush=True)


@app.command()
def cancel(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="run ids or cells")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all runs of the study")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """Take runs back from the queue, or stop them. They keep their checkpoints."""
    from ablatrix.orchestrator.status import study_state
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.submit import cancel as cancelling
    from ablatrix.orchestrator.submit import waves
    from ablatrix.trainer.rundir.errors import UserError

    if bool(runs) == everything:
        raise UserError("cancel: name the runs, or give --all")
    found = study_dir.find_study(study, output)
    wanted = {run.id for name in runs or () for run in found.matching(name)}
    states = cancelling.affected(study_state.collect(found), None if everything else wanted)
    helpers = cancelling.helper_job_ids(found) if everything else []
    if not states and not helpers and not waves.waits(found, None if everything else wanted):
        print("nothing to cancel: none of these runs is queued or running")
        return
    if not yes:
        names = ", ".join([s.run.id for s in states[:8]] + [f"job {job}" for job in helpers])
        typer.confirm(visible(f"cancel {len(states)} runs of {found.folder}: {names}?"), abort=True)
    if helpers:  # first, or they would queue what is being cancelled
        print(f"cancelled {cancelling.cancel_helpers(found)}")
    forgotten = waves.forget(found, None if everything else wanted)
    if forgotten:
        print(f"{forgotten} runs no longer wait for room in the queue")
    print(f"cancelled {len(cancelling.cancel(states))} runs")


@app.command()
def clean(
    study: Target = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    output: Output = OUT,
) -> None:
    """Remove what nothing needs: older checkpoints of finished runs, results put aside, code that no run names."""
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.submit import clean as cleaning

    found = study_dir.find_study(study, output)
    items = cleaning.find(found)
    if not items:
        print(f"{visible(str(found.folder))}: nothing to remove")
        return
    print(visible("\n".join(cleaning.describe(items))))
    if not yes:
        typer.confirm(visible(f"remove {cleaning.total(items)}?"), abort=True)
    print(f"removed {cleaning.total(cleaning.carry_out(found, items))}")


@app.command()
def diff(first: RunName, second: RunName, study: StudyOption = None, output: Output = OUT) -> None:
    """What differs between two runs in configuration, code and environment."""
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.terminal import logs as inspection
    from ablatrix.orchestrator.terminal import tables

    found = study_dir.find_study(study, output)
    one, two = found.find_any(first), found.find_any(second)
    _console().print(tables.difference_table(one, two, inspection.differences(one, two)))


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN|FILE", help="run id, the beginning of one, a cell; or a file")],
    planned: Annotated[
        str | None, typer.Option("--run", help="of FILE: which planned run (default: the first)")
    ] = None,
    sets: Sets = None,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """One run: its state, its files, its configuration and who set each value, the end of its log.

    With an experiment file: a run as it would be, before anything is submitted.
    """
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.submit import submit as submitting
    from ablatrix.orchestrator.terminal import tables

    if planned or sets or ".yaml" in run or ".yml" in run:
        submitting.show_run(submitting.make_plan(_options(Path(run), "local", sets=sets)), planned, _console())
        return
    found = study_dir.find_study(study, output)
    tables.print_run(found, found.find_any(run), _console())


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write it to this file")] = None,
    check: Annotated[Path | None, typer.Option("--check", metavar="FILE", help="is this file up to date?")] = None,
) -> None:
    """The JSON schema of experiment files, for editors."""
    from ablatrix.orchestrator.study import json_schema as schema_module
    from ablatrix.trainer.rundir.errors import RunError, UserError

    text = schema_module.text()
    if not check and not output:
        print(text, end="")
        return
    try:
        if check:
            if read_bytes(check).decode("utf-8", "replace") != text:
                raise RunError(f"{check}: is not this version's schema; renew it with: {_schema_command(check)}")
        elif output:
            if output.exists() and not output.is_file():
                raise UserError(f"{output}: is no file that can be replaced; name another one, or use > instead")
            atomic_write(output, text, durable=False)
    except OSError as error:
        raise UserError(f"{check or output}: {error.strerror}") from None


def _schema_command(file: Path) -> str:
    return f"{program()} schema --output {shlex.quote(str(file))}"


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")]) -> None:
    """A small workspace in a folder of your own: a study, its base, a schema for editors, a Makefile."""
    from ablatrix.orchestrator.submit import init_workspace

    for path in init_workspace.create(folder):
        print(path)
    verb = program(relative=False)
    print(
        f"\nnext: cd {shlex.quote(str(folder))}\n"
        f"      {verb} warm-cache --tokenizer sample     # a tokenizer and a small corpus, made here, no network\n"
        f"      {verb} submit ablation.yaml --wait && {verb} report"
    )


@app.command(
    "warm-cache",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[OPTIONS]",
)
def warm_cache(context: typer.Context) -> None:
    """On the login node: a tokenizer and data into the offline cache (`warm-cache --help` lists the options)."""
    from ablatrix.trainer.data import warm_cache as warm

    raise typer.Exit(warm.main(context.args))
