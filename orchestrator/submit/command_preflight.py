"""Would a command start? Its folder, program, script, imports and flags, looked at before anything is queued."""

from __future__ import annotations

import difflib
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
from typing import Any

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import command_template, exported_env
from ablatrix.orchestrator.study.command import HELPER
from ablatrix.orchestrator.study.command_config import CommandConfig
from ablatrix.orchestrator.study.command_program import Program, find_program
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.console import say

IMPORTS = Path(__file__).with_name("script_imports.py")
ASK_SECONDS = 20.0
HELP_SECONDS = 40.0  # a script that imports a large framework before it reads its flags
_FLAG = re.compile(r"(?<![\w-])--(\[no-?\])?([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True)
class Start:
    """One way in which runs start."""

    words: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    settings: tuple[str, ...]


def check(loaded: Loaded, runs: Sequence[Run], launcher: str) -> Iterator[str]:
    """Everything that would keep the command from training; remarks are printed."""
    at = loaded.at("command")
    # modules and environments that a job loads first bring the program and its Python
    prepared = launcher != "local" and bool(loaded.experiment.slurm.setup)
    for start in _starts(loaded, runs):
        if not start.folder.is_dir():
            yield f"{loaded.at('workdir')}workdir: {start.folder} is no folder"
            continue
        path = start.environment.get("PATH")
        program = find_program(start.words, start.folder, path)
        problem = _missing_program(start, program, path, prepared)
        if problem:
            yield f"{at}command: {problem}"
        elif program and (program.script or program.module):
            problem = _missing_script(start, program)
            if problem:
                yield f"{at}command: {problem}"
            elif program.is_python and not (prepared and not _is_fixed(program)):
                yield from _ask_python(loaded, start, program, at)


def _starts(loaded: Loaded, runs: Sequence[Run]) -> Iterable[Start]:
    """The different ways in which the runs start, values apart."""
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
            found[key] = Start(tuple(spec["command"]), Path(spec["workdir"]), env, tuple(run.config.settings))
    return found.values()


def _is_fixed(program: Program) -> bool:
    """True if no setup line of a job can change the interpreter."""
    return bool(program.interpreter) and os.path.isabs(program.interpreter[0])


def _missing_program(start: Start, program: Program | None, path: str | None, prepared: bool) -> str:
    """What is said of a program that is not there; ''."""
    wanted = [start.words[0]]
    if program and program.interpreter and program.interpreter[0] in start.words:
        wanted.append(program.interpreter[0])
    for word in wanted:
        if ("/" in word or not prepared) and not shutil.which(
            str(start.folder / word) if "/" in word else word, path=path
        ):
            return f"{word}: no such program, or not executable"
    return ""


def _missing_script(start: Start, program: Program) -> str:
    """What is said of a script that is not there; ''."""
    file = start.folder / program.script
    if not program.script or file.exists():
        return ""
    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.*")], 1)
    here = [str(p.parent) for p in (Path.cwd() / program.script, *start.folder.glob(f"*/{file.name}")) if p.exists()]
    hint = f" (did you mean {near[0]}?)" if near else f"; there is one in {here[0]}: set `workdir`" if here else ""
    return f"{program.script}: no such file in {start.folder}{hint}"


def _ask_python(loaded: Loaded, start: Start, program: Program, at: str) -> Iterator[str]:
    """What the interpreter of the command says of the script's imports and flags."""
    interpreter = program.interpreter
    if not interpreter:
        return
    where = shutil.which(interpreter[0], path=start.environment.get("PATH")) or interpreter[0]
    name = " ".join((where, *interpreter[1:]))
    asked = {"script": str(start.folder / program.script), "module": program.module, "folder": str(start.folder)}
    code, output = _run(
        [*interpreter, "-c", IMPORTS.read_text(encoding="utf-8")], start, json.dumps(asked), ASK_SECONDS
    )
    answer = _last_object(output)
    if answer is None:
        lines = output.strip().splitlines()
        yield f"{at}command: {name} cannot be run: {lines[-1] if lines else f'exit code {code}'}"
        return
    other = program.bare and os.path.abspath(where) != os.path.abspath(sys.executable)
    hint = f"; Ablatrix runs in {sys.executable}: write {{python}} for that one" if other else ""
    found = list(dict.fromkeys(_import_problems(answer, name, hint)))
    yield from (f"{at}command: {problem}" for problem in found)
    if other and not found:
        say(f"note: {at}command: {interpreter[0]} is {where}{hint}")
    if not found:
        yield from _check_flags(loaded, start, program, answer)


def _import_problems(answer: Mapping[str, Any], name: str, hint: str) -> Iterator[str]:
    python = f"{name} (Python {answer['version']})"
    if answer["no_module"]:
        yield f"-m {answer['no_module']}: {python} has no such module{hint}"
    if answer.get("syntax"):
        yield f"{answer['syntax']} (read by {python})"
    for module, file, line in answer.get("missing", ()):
        if module != Path(HELPER).stem:
            yield f"{file}:{line}: imports {module}, which {python} does not have; install it there{hint}"


# ---- flags

NO_VALUE, SEVERAL = "no value", "several"


def _check_flags(loaded: Loaded, start: Start, program: Program, answer: Mapping[str, Any]) -> Iterator[str]:
    """Flags that the script's own --help does not know. Scripts without a known parser are not started."""
    style = loaded.experiment.flags.style
    given = [word.partition("=")[0] for word in program.arguments if word.startswith("--") and word != "--"]
    if not given or "hydra" in answer["parsers"] or not answer["parsers"]:
        return
    before = []  # such as the name of a subcommand
    for word in program.arguments:
        if word.startswith("-"):
            break
        before.append(word)
    code, text = _run([*program.start, *before, "--help"], start, "", HELP_SECONDS)
    known = _known_flags(text) if code == 0 and "usage" in text.lower() else {}
    if not known.keys() - {"--help"}:
        why = "it does not end" if code is None else "its answer names none"
        say(f"note: flags not checked: {program.script or program.module} was asked with --help, but {why}")
        return
    if answer["lenient"]:
        return  # it takes unknown flags, perhaps for a second parser
    keys = {command_template.flag_name(key, style): key for key in start.settings}
    for flag in dict.fromkeys(given):
        problem = _flag_problem(flag, known, [w for w in program.arguments if w.partition("=")[0] == flag])
        if problem:
            yield f"{_place(loaded, keys.get(flag))}{flag}: {problem}"
    required = [flag for flag in _required(text) if not any(flag.startswith(name) for name in given)]
    for flag in required:
        yield f"{loaded.at('command')}command: {program.script or program.module} requires {flag}"


def _flag_problem(flag: str, known: Mapping[str, str], words: Sequence[str]) -> str:
    """known: flag -> the values it takes, as _known_flags says."""
    if flag not in known and not any(name.startswith(flag) for name in known):
        return f"the script has no such flag{nearest(flag, list(known))}"
    if known.get(flag) == NO_VALUE and any("=" in word for word in words):
        booleans = "no-prefix" if f"--no-{flag.removeprefix('--')}" in known else "switch"
        return f"takes no value; choose `flags: {{style: ..., booleans: {booleans}}}`"
    if known.get(flag) == SEVERAL and any("=[" in word for word in words):
        return "takes several words; choose `flags: {style: ..., lists: words}`"
    return ""


def _place(loaded: Loaded, key: str | None) -> str:
    """`file:line: base.key: ` of a setting, or of the command."""
    if key is None:
        return f"{loaded.at('command')}command: "
    if key in loaded.experiment.base:
        return f"{loaded.at('base', key)}base.{key}: "
    levels = [level for group in loaded.experiment.levels() for level in group]
    path = next((level.path for level in levels if key in level.overrides), ("base",))
    return f"{loaded.at(*path, key)}{'.'.join(path)}.{key}: "


def _known_flags(text: str) -> dict[str, str]:
    """Flag -> NO_VALUE, SEVERAL or "", from the output of --help."""
    found: dict[str, str] = {}
    for negated, name in _FLAG.findall(text):
        for flag in (f"--{name}", *([f"--no-{name}", f"--no{name}"] if negated else [])):
            found.setdefault(flag, _values_of(flag, text))
    return found


def _values_of(flag: str, text: str) -> str:
    """Return NO_VALUE or SEVERAL where the usage or the list of options shows it."""
    name = re.escape(flag)
    alone = rf"(?:\[|\| ){name}(?:\]| \|)|^[ \t│*]*(?:-[^\n]*, )?{name}(?:, --?[\w.-]+)*(?:  |[ \t]*$)"
    if re.search(alone, text, re.MULTILINE):
        return NO_VALUE
    return SEVERAL if re.search(rf"{name} (\S+ )?\[\S+ \.\.\.\]", text) else ""


def _required(text: str) -> list[str]:
    """Flags outside all brackets of argparse's usage."""
    usage = re.search(r"usage:(.*?)(\n\s*\n|\Z)", text, re.DOTALL | re.IGNORECASE)
    rest = usage[1] if usage else ""
    while (shorter := re.sub(r"\[[^\[\]]*\]|\([^()]*\)", " ", rest)) != rest:
        rest = shorter
    return [f"--{name}" for _, name in _FLAG.findall(rest)]


# ---- processes


def _run(words: Sequence[str], start: Start, text: str, seconds: float) -> tuple[int | None, str]:
    """(exit code, output) of a short process without GPUs; None: ended after `seconds`."""
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


def _last_object(output: str) -> dict[str, Any] | None:
    """The JSON object in the last line of some output."""
    lines = output.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
