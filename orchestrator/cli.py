"""The command line: each verb imports and calls its function in verbs/ only when run, so that --help is instant."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import ablatrix
from ablatrix.orchestrator.terminal import interrupts
from ablatrix.trainer.rundir.console import start_command_logging
from ablatrix.trainer.rundir.errors import AblatrixError, UserError
from ablatrix.trainer.rundir.text_request import Request

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path,
    typer.Argument(help="the experiment: a file, file.yaml#config for one of its configs, or a name on ABLATRIX_PATH"),
]
Target = Annotated[str | None, typer.Argument(help="study folder or name; default: the one submitted last")]
Output = Annotated[Path, typer.Option("--output", help="where studies are")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override; highest precedence")]
LauncherName = Annotated[str, typer.Option("--launcher", help="auto, local, submitit or sbatch")]
StudyOption = Annotated[str | None, typer.Option("--study", help="study folder or name; default: the last one")]
RunName = Annotated[str, typer.Argument(help="run id, the beginning of one, or a cell's name")]
AnyRun = Annotated[str, typer.Argument(metavar="RUN", help="run id or cell, STUDY/RUN, or the folder of a run")]

Json = Annotated[bool, typer.Option("--json", help="for scripts: JSON to stdout, all else to stderr")]

OUT = Path("out")


def main() -> None:
    """Entry point: errors are one line each; exit code 2 for a user's mistake, 1 for a failure, 130 on Ctrl-C."""
    interrupts.raise_on_ctrl_c()
    start_command_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths may not be valid UTF-8
            stream.reconfigure(errors="backslashreplace")
    # completion is for the installed command, even if started as `python -m ablatrix`
    for_shell = {"--install-completion", "--show-completion"} & set(sys.argv[1:])
    try:
        app(prog_name="ablatrix" if for_shell else None)
    except AblatrixError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"errors": error.lines, "exit_code": error.exit_code}, indent=1))
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        print(f"\n{interrupt}" if sys.stderr.isatty() else interrupt, file=sys.stderr)
        sys.exit(interrupts.EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        sys.stderr.close()
    except (OSError, MemoryError, RuntimeError) as error:
        problem = _describe_machine(error)
        if not problem:
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)


def _describe_machine(error: OSError | MemoryError | RuntimeError) -> str:
    """Describe a problem of the machine or a folder (full, read-only, removed); return "" for a bug in the code."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; fix this and rerun the command"
    if isinstance(error, MemoryError):
        return "not enough memory; see ulimit -v and the sizes of the files"
    threads = "start new thread" in str(error)
    return "this machine does not let you start another thread; see ulimit -u" if threads else ""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ablatrix {ablatrix.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Ablation studies of small GPTs: one YAML file in, jobs on Slurm or this machine, a verdict out."""


@app.command()
def plan(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    sbatch: Annotated[bool, typer.Option("--sbatch", help="print the exact job scripts")] = False,
    style: Annotated[str, typer.Option("--format", help="table, tree or json")] = "table",
    as_json: Json = False,
    schedules: Annotated[bool, typer.Option("--schedules", help="draw the learning rates of all cells")] = False,
    compare_designs: Annotated[bool, typer.Option("--compare-designs", help="runs and precision of each")] = False,
) -> None:
    """Show the runs of an experiment, without creating or queueing anything."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.plan import Options, plan

    options = Options(file, launcher, sets or ())
    style = "json" if as_json else style
    shown = "schedules" if schedules else "sbatch" if sbatch else "designs" if compare_designs else style
    plan(options, open_console(), shown)


@app.command()
def submit(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, then show the plan only")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="CELL", help="only this cell (repeatable)")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="rerun failed, lost and cancelled runs")] = False,
    rerun: Annotated[list[str] | None, typer.Option(metavar="RUN", help="set its result aside and rerun it")] = None,
    smoke: Annotated[int, typer.Option(metavar="N", min=0, help="first run every cell for N steps")] = 0,
    devices: Annotated[str | None, typer.Option("-d", "--devices", help="GPUs of this machine, such as 0,1")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="queue no report job after the runs")] = False,
    over_budget: Annotated[bool, typer.Option("--over-budget", help="more GPU-hours than `budget:` allows")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="stay until all runs have ended, with live progress")] = False,
    as_json: Json = False,
) -> None:
    """Run an experiment, on Slurm if there is a cluster, else on this machine. Finished runs are not rerun."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.plan import Options
    from ablatrix.orchestrator.verbs.submit import submit

    options = Options(
        file,
        launcher,
        sets=sets or (),
        only=only or (),
        retry=retry,
        rerun=rerun or (),
        smoke=smoke,
        devices=devices,
        wait=wait,
        dry_run=dry_run,
        with_report=not no_report,
        over_budget=over_budget,
    )
    raise typer.Exit(submit(options, open_console(of_errors=as_json), as_json))


@app.command()
def status(
    study: Target = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="refresh until Ctrl-C")] = False,
    as_json: Json = False,
    everything: Annotated[bool, typer.Option("--all", help="show every run, even of a large study")] = False,
    output: Output = OUT,
) -> None:
    """Show the state of each run, from its files and the scheduler."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.status import status

    status(study, output, open_console(), watch=watch, as_json=as_json, everything=everything)


@app.command()
def report(
    studies: Annotated[list[str] | None, typer.Argument(help="study folders or names; default: the last one")] = None,
    output: Output = OUT,
    pdf: Annotated[bool, typer.Option("--pdf", help="also write report.pdf, A4 to hand in, and PDF figures")] = False,
    as_json: Json = False,
    interactive: Annotated[bool, typer.Option("--interactive", hidden=True)] = False,  # ignored: the page always is
    notify: Annotated[bool, typer.Option("--notify", hidden=True)] = False,  # used by the report job
) -> None:
    """Compare the cells: tables, plots and a verdict, written into the study's report/ folder.

    Several studies are also compared with each other.
    """
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.report import report

    report(studies or (), output, open_console(), pdf=pdf, as_json=as_json, notify=notify)


@app.command()
def check(
    file: File,
    sets: Sets = None,
    launcher: LauncherName = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="also check failed, lost and cancelled runs")] = False,
    as_json: Json = False,
) -> None:
    """Find everything that would fail, before anything is queued. `submit` does this too."""
    from ablatrix.orchestrator.verbs.check import check
    from ablatrix.orchestrator.verbs.plan import Options

    check(Options(file, launcher, sets or (), retry=retry), as_json)


@app.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="follow it until the run ends")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="number of lines; 0: all")] = 50,
    as_json: Json = False,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """Show what a run printed."""
    from ablatrix.orchestrator.verbs.logs import logs

    logs(run, study, output, lines=lines, keep_following=follow, as_json=as_json)


@app.command()
def cancel(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="run ids or cells")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all runs of the study")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """Remove runs from the queue or stop them. They keep their checkpoints."""
    from ablatrix.orchestrator.verbs.cancel import cancel

    cancel(runs or (), study, output, everything=everything, yes=yes, as_json=as_json)


@app.command()
def clean(
    study: Target = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: Json = False,
    output: Output = OUT,
) -> None:
    """Remove what is no longer needed: older checkpoints of finished runs, results set aside, unused code."""
    from ablatrix.orchestrator.verbs.clean import clean

    clean(study, output, yes=yes, as_json=as_json)


@app.command()
def diff(
    first: RunName, second: RunName, study: StudyOption = None, output: Output = OUT, as_json: Json = False
) -> None:
    """Compare two runs: configuration, data, code and environment."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.diff import diff

    diff(first, second, study, output, open_console(), as_json=as_json)


@app.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN|FILE", help="run id, the beginning of one, a cell; or a file")],
    planned: Annotated[
        str | None, typer.Option("--run", help="of FILE: which planned run (default: the first)")
    ] = None,
    sets: Sets = None,
    study: StudyOption = None,
    output: Output = OUT,
    as_json: Json = False,
) -> None:
    """Show a run: its state, files, configuration with the origin of each value, and the end of its log.

    With an experiment file, show a planned run before anything is submitted.
    """
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.show import show

    show(run, planned, sets or (), study=study, output=output, console=open_console(), as_json=as_json)


@app.command()
def doctor(
    as_json: Json = False,
    output: Output = OUT,
) -> None:
    """Check this machine (Python, PyTorch and GPUs, Slurm, offline cache, disk, clock) and say what to do."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.doctor import doctor

    raise typer.Exit(doctor(output, open_console(), as_json=as_json))


@app.command()
def export(
    run: AnyRun,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="a new folder")],
    form: Annotated[str, typer.Option("--format", help="transformers or mingpt")] = "transformers",
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """Write a run's weights, configuration and tokenizer for Hugging Face's transformers, or for minGPT."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.export import export

    open_console().print(export(run, to, study, output, form=form), soft_wrap=True)


@app.command()
def generate(
    run: AnyRun,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="prompt to continue")],
    compare: Annotated[
        list[str] | None, typer.Option(metavar="CELL", help="also a run of this cell (repeatable)")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="number of tokens to generate")] = Request.tokens,
    temperature: Annotated[
        float, typer.Option(help="divides the logits before a token is drawn")
    ] = Request.temperature,
    top_k: Annotated[int, typer.Option(min=0, help="draw from the N likeliest tokens only; 0: all")] = Request.top_k,
    seed: Annotated[int, typer.Option(min=0, help="seed, the same for all runs")] = 0,
    study: StudyOption = None,
    output: Output = OUT,
) -> None:
    """Generate text with a run's model, side by side with other cells, on this machine's CPU."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs import generate as verb

    request = Request(prompt, tokens, temperature, top_k, seed)
    verb.print_texts(verb.generate(run, compare or (), study, output, request), open_console())


@app.command()
def pack(
    study: Target = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="default: STUDY.ablatrix.zip")] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="also pack weights and checkpoints")] = False,
    output: Output = OUT,
) -> None:
    """Pack a study into one archive: results, configurations, code, environment and report, with their hashes."""
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.pack import pack

    pack(study, to, output, open_console(), checkpoints=checkpoints)


@app.command()
def replay(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="a file made by `pack`")],
    cells: Annotated[
        list[str] | None, typer.Option(metavar="CELL", help="repeat this cell (default: the baseline and the best)")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="such as 1,2 or 1-3; default: the first")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=PATH", help="new path of the corpus or the cache")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="default: STUDY-replay")] = None,
    margin: Annotated[
        float | None, typer.Option(metavar="D", help="largest difference of a cell that does not matter")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify an archive, repeat some of its runs with its code on this machine, and compare the results.

    Exit code 0: reproduced, 1: not reproduced, 3: cannot tell.
    """
    from ablatrix.orchestrator.terminal.printing import open_console
    from ablatrix.orchestrator.verbs.replay import Options, replay

    options = Options(archive, to, cells or (), seeds, sets or (), margin)
    raise typer.Exit(replay(options, open_console(of_errors=as_json), as_json=as_json))


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="write it to this file")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="fail unless this file is up to date")
    ] = None,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    from ablatrix.orchestrator.verbs.schema import schema

    schema(output, check)


@app.command()
def init(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="a new folder; with --site: any")] = None,
    site: Annotated[bool, typer.Option("--site", help="only write DIR/site.yaml: what this cluster offers")] = False,
) -> None:
    """Create a small workspace in a new folder: a study, its base, a schema for editors, a Makefile."""
    from ablatrix.orchestrator.verbs import init as verb

    if site:
        verb.init_site(folder or Path())
    elif folder is None:
        raise UserError("init: give a new folder, or give --site")
    else:
        verb.init(folder)


@app.command(
    "warm-cache",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[OPTIONS]",
)
def warm_cache(context: typer.Context) -> None:
    """Put a tokenizer and data into the offline cache, on the login node (`warm-cache --help` lists the options)."""
    from ablatrix.trainer.data import warm_cache

    raise typer.Exit(warm_cache.main(context.args))
