"""Preflight of a command: its folder, program, script, imports and flags, without running the script."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import command_flags, exported_env, value_origins
from ablatrix.orchestrator.study.command import HELPER
from ablatrix.orchestrator.study.command_config import CommandConfig
from ablatrix.orchestrator.study.command_program import Program, find_program
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.console import say

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.command_flags import Flags
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.matrix import Run

IMPORTS = Path(__file__).with_name("script_imports.py")
IMPORT_SECONDS = 20.0
HELP_SECONDS = 40.0  # a script may import a large framework before it reads its flags
_FLAG = re.compile(r"(?<![\w-])--(\[no-?\])?([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True)
class Start:
    """One of the ways in which runs start. features, settings: from the first run that starts this way."""

    words: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    features: tuple[str, ...]
    settings: tuple[str, ...]


def check_command(loaded: Loaded, runs: Sequence[Run], launcher: str) -> Iterator[str]:
    """Yield everything that would keep the command from training, and print notes."""
    at = f"{loaded.at('command')}command: "
    # the job's setup lines may provide the program and its Python, by loading modules or an environment
    prepared = launcher != "local" and bool(loaded.experiment.slurm.setup)
    notes: dict[str, None] = {}  # ordered set: each is printed once
    for start in _distinct_starts(loaded, runs):
        if not start.folder.is_dir():
            yield f"{loaded.at('workdir')}workdir: {start.folder} is not a folder"
            continue
        program = find_program(start.words, start.folder, start.environment.get("PATH"))
        problem = _find_missing_program(start, program, prepared) or _find_missing_script(start, program)
        if problem:
            yield f"{at}{problem}"
        elif program and (program.script or program.module) and program.is_python:
            fixed = bool(program.interpreter) and Path(program.interpreter[0]).is_absolute()
            if program.interpreter and (fixed or not prepared):
                yield from _check_python(loaded, start, program, at, notes)
    for note in notes:
        say(note)


def _distinct_starts(loaded: Loaded, runs: Sequence[Run]) -> Iterable[Start]:
    """Return the distinct ways in which the runs start; differences in values do not count."""
    found: dict[Any, Start] = {}
    environment = exported_env.environment(loaded.experiment.export)
    code = os.path.realpath(code_root())
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    theirs = [entry for entry in entries if entry and os.path.realpath(entry) != code]
    for run in runs:
        if not isinstance(run.config, CommandConfig):
            continue
        spec = run.config.spec((loaded.experiment.folder / run.id).absolute(), run.cell)
        names = tuple(word.partition("=")[0] if word.startswith("--") else "" for word in spec["command"])
        key = (spec["workdir"], names, *sorted(spec["env"].items()))
        if key not in found:
            path = os.pathsep.join(filter(None, [spec["env"].get("PYTHONPATH", ""), *theirs]))
            env = {**environment, **spec["env"], "PYTHONPATH": path}
            words, settings = tuple(spec["command"]), tuple(run.config.settings)
            found[key] = Start(words, Path(spec["workdir"]), env, run.features, settings)
    return found.values()


def _find_missing_program(start: Start, program: Program | None, prepared: bool) -> str:
    """Return an error message if the program does not exist, else ''. prepared: setup lines may change PATH."""
    wanted = [start.words[0]]
    if program and program.interpreter and program.interpreter[0] in start.words:
        wanted.append(program.interpreter[0])
    for word in wanted:
        is_path = "/" in word
        place = str(start.folder / word) if is_path else word
        if (is_path or not prepared) and not shutil.which(place, path=start.environment.get("PATH")):
            return f"{word}: no such program, or not executable"
    return ""


def _find_missing_script(start: Start, program: Program | None) -> str:
    """Return an error message if the script does not exist, else ''."""
    if not program or not program.script or (start.folder / program.script).exists():
        return ""
    file = start.folder / program.script
    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.*")], 1)
    hint = f" (did you mean {near[0]}?)" if near else "; paths start at `workdir`"
    return f"{program.script}: no such file in {start.folder}{hint}"


def _check_python(loaded: Loaded, start: Start, program: Program, at: str, notes: dict[str, None]) -> Iterator[str]:
    """Yield imports that the command's own interpreter cannot find, then flags that the script rejects.

    notes: receives a note if the interpreter is not ours.
    """
    interpreter = program.interpreter
    where = shutil.which(interpreter[0], path=start.environment.get("PATH")) or interpreter[0]
    name = " ".join((where, *interpreter[1:]))
    question = {"script": str(start.folder / program.script), "module": program.module, "folder": str(start.folder)}
    words = [*interpreter, "-c", IMPORTS.read_text(encoding="utf-8")]
    code, output = _run(words, start, json.dumps(question), IMPORT_SECONDS)
    answer = _parse_last_line(output)
    if answer is None:
        lines = output.strip().splitlines()
        yield f"{at}{name} cannot be run: {lines[-1] if lines else f'exit code {code}'}"
        return
    other = program.bare and not _is_ours(answer)
    hint = f"; Ablatrix runs in {sys.executable}: write {{python}} to use it" if other else ""
    problems = list(dict.fromkeys(_import_problems(answer, name, hint)))
    yield from (f"{at}{problem}" for problem in problems)
    if not problems:
        if other:
            notes.setdefault(f"note: {at}{interpreter[0]} is {where}{hint}")
        yield from _check_flags(loaded, start, program, answer)


def _is_ours(answer: Mapping[str, Any]) -> bool:
    """True if an interpreter, whatever its path, belongs to our environment and has our version."""
    same_version = bool(answer["version"] == sys.version.split()[0])
    return same_version and os.path.realpath(answer["prefix"]) == os.path.realpath(sys.prefix)


def _import_problems(answer: Mapping[str, Any], name: str, hint: str) -> Iterator[str]:
    python = f"{name} (Python {answer['version']})"
    if answer["no_module"]:
        yield f"-m {answer['no_module']}: {python} has no such module{hint}"
    if answer.get("syntax"):
        yield f"{answer['syntax']} (read by {python})"
    for module, file, line in answer.get("missing", ()):
        if module != Path(HELPER).stem:
            yield f"{file}:{line}: imports {module}, which {python} does not have; install it there{hint}"


def _check_flags(loaded: Loaded, start: Start, program: Program, answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield flags that the script's own --help contradicts. Does not start a script without a known parser."""
    script = program.script or program.module
    given = [word.partition("=")[0] for word in program.arguments if word.startswith("--") and word != "--"]
    if not given or "hydra" in answer["parsers"] or not answer["parsers"]:
        return
    subcommand = itertools.takewhile(lambda word: not word.startswith("-"), program.arguments)
    code, text = _run([*program.start, *subcommand, "--help"], start, "", HELP_SECONDS)
    known = _known_flags(text) if code == 0 and "usage" in text.lower() else set()
    if not known - {"--help"}:
        why = "it does not end" if code is None else "its output lists none"
        say(f"note: flags not checked: {script} was run with --help, but {why}")
        return
    if answer["lenient"]:  # it accepts unknown flags, perhaps for a second parser
        return
    keys = {command_flags.flag_name(key, loaded.experiment.flags.style): key for key in start.settings}
    at = f"{loaded.at('command')}command: "
    for flag in dict.fromkeys(given):
        values = [word.partition("=")[2] for word in program.arguments if word.startswith(f"{flag}=")]
        problem = _flag_problem(flag, values, known, text, loaded.experiment.flags)
        if problem:
            place = value_origins.position(loaded, start.features, keys[flag]) if flag in keys else at
            yield f"{place}{flag}: {problem}"
    for flag in _required_flags(text):
        if not any(flag.startswith(name) for name in given):
            yield f"{at}{script} requires {flag}"


def _flag_problem(flag: str, values: Sequence[str], known: set[str], text: str, flags: Flags) -> str:
    """Return what is wrong with a flag, '' if nothing is. text: the script's --help. flags: the study's flags."""
    if not any(name.startswith(flag) for name in known):  # argparse accepts abbreviated flags
        return f"the script has no such flag{nearest(flag, list(known))}"
    if values and flag in known and _takes_no_value(flag, text):
        booleans = "no-prefix" if f"--no-{flag.removeprefix('--')}" in known else "switch"
        return f"takes no value; write `flags: {flags.spell_with(booleans=booleans)}`"
    if any(value.startswith("[") for value in values) and re.search(rf"{re.escape(flag)} (\S+ )?\[\S+ \.\.\.\]", text):
        return f"takes several words; write `flags: {flags.spell_with(lists='words')}`"
    return ""


def _known_flags(text: str) -> set[str]:
    """Return the flags in the output of --help."""
    found = set()
    for negated, name in _FLAG.findall(text):
        found |= {f"--{name}", *((f"--no-{name}", f"--no{name}") if negated else ())}
    return found


def _takes_no_value(flag: str, text: str) -> bool:
    """True if the usage or the list of options shows the flag without a value."""
    name = re.escape(flag)
    alone = rf"(?:\[|\| ){name}(?:\]| \|)|^[ \t│*]*(?:-[^\n]*, )?{name}(?:, --?[\w.-]+)*(?:  |[ \t]*$)"
    return bool(re.search(alone, text, re.MULTILINE))


def _required_flags(text: str) -> list[str]:
    """Return the required flags, which are outside all brackets in argparse's usage."""
    usage = re.search(r"usage:(.*?)(\n\s*\n|\Z)", text, re.DOTALL | re.IGNORECASE)
    rest = usage[1] if usage else ""
    while (shorter := re.sub(r"\[[^\[\]]*\]|\([^()]*\)", " ", rest)) != rest:
        rest = shorter
    return [f"--{name}" for _, name in _FLAG.findall(rest)]


def _run(words: Sequence[str], start: Start, text: str, seconds: float) -> tuple[int | None, str]:
    """Run a short process without GPUs; return (exit code, output), the code None if it was killed after `seconds`."""
    environment = {**start.environment, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "NO_COLOR": "1"}
    try:
        process = subprocess.Popen(
            words,
            cwd=start.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return 127, str(error)
    try:
        output, _ = process.communicate(text.encode(), seconds)
        return process.returncode, output.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""


def _parse_last_line(output: str) -> dict[str, Any] | None:
    """Return the JSON object on the last line of a process's output, None if there is none."""
    lines = output.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
