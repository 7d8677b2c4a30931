"""The verbs. Each parses, calls and prints; imports wait until a verb needs them, so that --help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.errors import AblatrixError

app = typer.Typer(
    name="orchestrator",
    help="Ablation studies of small GPTs: one YAML file in, jobs on Slurm or this machine, a verdict out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(help="the experiment file, such as experiments/ablation.yaml")]
Target = Annotated[str | None, typer.Argument(help="study folder or name; default: the one submitted last")]
Output = Annotated[Path, typer.Option("--output", help="where studies are")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override; wins over everything")]
LauncherName = Annotated[str, typer.Option("--launcher", help="auto, local, submitit or sbatch")]
RunName = Annotated[str, typer.Argument(help="run id, the beginning of one, or a cell's name")]

OUT = Path("out")
LAUNCHERS = ("auto", "local", "submitit", "sbatch")


def main() -> None:
    """Entry point: errors of ours are one line each; exit code 2 for a user's mistake, 1 for a failure."""
    try:
        app()
    except AblatrixError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoints", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=180)


def _options(file: Path, launcher: str, **rest: Any) -> Any:
    from orchestrator.submit import Options
    from trainer.errors import UserError

    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher {launcher}: choose one of {', '.join(LAUNCHERS)}")
    return Options(file, launcher, **{name: value for name, value in rest.items() if value is not None})


@app.command()
def plan(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    sbatch: Annotated[bool, typer.Option("--sbatch", help="print the exact job scripts")] = False,
) -> None:
    """Show the runs of an experiment, without creating or queueing anything."""
    from orchestrator import display, submit

    planned = submit.make_plan(_options(file, launcher, sets=sets), check=False)
    if sbatch:
        for script in submit.scripts(planned):
            print(script)
    else:
        _console().print(display.plan_table(planned.runs, planned.folder))


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
    wait: Annotated[bool, typer.Option("--wait", help="stay until all runs have ended, with live progress")] = False,
) -> None:
    """Run an experiment: on Slurm where sbatch is, else on this machine. What is done is not run twice."""
    from orchestrator.submit import submit as carry_out

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
    )
    states = carry_out(options, _console())
    if any(state.state in ("failed", "lost") for state in states):
        raise typer.Exit(1)


@app.command()
def status(
    study: Target = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="refresh until Ctrl-C")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
    output: Output = OUT,
) -> None:
    """The truth about each run: files first, then the scheduler."""
    from orchestrator import display, rundir
    from orchestrator import status as state_module

    found = rundir.find_study(study, output)
    if watch:
        display.watch(found, _console(), until_settled=False)
        return
    scheduler = state_module.Scheduler()
    states = state_module.collect(found, scheduler)
    if as_json:
        print(state_module.as_json(states, scheduler))
        return
    console = _console()
    console.print(display.status_table(states, str(found.folder)))
    console.print(display.summary_line(states, scheduler), highlight=False)


@app.command()
def report(study: Target = None, output: Output = OUT) -> None:
    """Compare the cells: tables, plots and a verdict, written into the study's report/ folder."""
    from orchestrator import display, rundir
    from orchestrator import report as reporting
    from orchestrator import status as state_module

    found = rundir.find_study(study, output)
    states = {state.run.id: (state.state, state.reason) for state in state_module.collect(found)}
    display.print_verdict(reporting.build(found.folder, states), _console())


@app.command()
def show(run: RunName, study: Annotated[str | None, typer.Option("--study")] = None, output: Output = OUT) -> None:
    """One run: its state, its files, its configuration, the end of its log."""
    from orchestrator import display, rundir

    display.print_run(rundir.find_study(study, output).find(run), rundir.find_study(study, output), _console())
