"""Find the program, interpreter and script that a command starts through srun, conda run, torchrun and the like."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ablatrix.orchestrator.study.command_template import SHELLS

PYTHON = re.compile(r"(python|pypy)[0-9.]*")
# Programs that run the rest of their command line in the same environment
TRANSPARENT = {"env", "nice", "ionice", "nohup", "time", "timeout", "stdbuf", "setsid", "numactl", "taskset"}
TRANSPARENT |= {"srun", "mpirun", "mpiexec", "unbuffer", "exec"}
# ... in a different environment
MANAGERS = {"uv", "poetry", "conda", "mamba", "micromamba", "pipenv", "pdm", "hatch", "rye", "pixi"}
QUIET_MANAGERS = {"poetry", "conda", "mamba", "micromamba", "pipenv"}  # install nothing when they run a program
LAUNCHERS = {"torchrun", "accelerate", "deepspeed"}
LAUNCHER_MODULES = {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed"}


@dataclass(frozen=True)
class Program:
    """The program of a command. start: the words up to the script; interpreter: the words that start its Python."""

    start: tuple[str, ...]
    arguments: tuple[str, ...]
    script: str = ""
    module: str = ""
    interpreter: tuple[str, ...] = ()
    bare: bool = False  # the interpreter is looked up on PATH

    @property
    def is_python(self) -> bool:
        return bool(self.module) or self.script.endswith(".py") or bool(self.interpreter)


def find_program(words: Sequence[str], folder: Path, path: str | None) -> Program | None:
    """Return the program of a command, None if it is unknown (a container, `bash -c`, some other kind of program).

    folder: working directory of the command; path: its PATH.
    """
    names, at = [PurePath(word).name for word in words], 0
    if names[0] in TRANSPARENT | MANAGERS:
        at = next((i for i, word in enumerate(words) if i and _is_known(word)), 0)
        if not at:
            return None
    manager = next((name for name in names[:at] if name in MANAGERS), "")
    found = _read(list(words), at, folder, path)
    if found is None or not manager:
        return found
    return _managed(found, manager, list(words[:at]), folder)


def _is_known(word: str) -> bool:
    name = PurePath(word).name
    return bool(PYTHON.fullmatch(name)) or name in SHELLS or name in LAUNCHERS or name.endswith(".py")


def _managed(found: Program, manager: str, prefix: list[str], folder: Path) -> Program:
    """Return the program with its environment's interpreter, if that can be run without installing anything."""
    interpreter: tuple[str, ...] = ()
    if manager in QUIET_MANAGERS and found.is_python:
        interpreter = (*prefix, "python")
    elif manager == "uv" and (folder / ".venv/bin/python").exists():
        interpreter = (str(folder / ".venv/bin/python"),)
    return Program(found.start, found.arguments, found.script, found.module, interpreter)


def _read(words: list[str], at: int, folder: Path, path: str | None) -> Program | None:
    """Return the program that starts at word `at`."""
    name = PurePath(words[at]).name
    if PYTHON.fullmatch(name):
        return _of_python(words, at)
    if name in SHELLS:
        return _of_shell(words, at)
    if name in LAUNCHERS:
        return _of_launcher(words, at + 1, _shebang(shutil.which(words[at], path=path)))
    if name.endswith(".py"):
        file = folder / words[at] if "/" in words[at] else None
        return Program(tuple(words[: at + 1]), tuple(words[at + 1 :]), words[at], "", _shebang(file))
    return None


def _of_python(words: list[str], at: int) -> Program | None:
    interpreter, bare = (words[at],), "/" not in words[at]
    place = at + 1
    while place < len(words):
        word = words[place]
        if word == "-m" and place + 1 < len(words):
            module = words[place + 1]
            if module in LAUNCHER_MODULES:
                return _of_launcher(words, place + 2, interpreter, bare)
            return Program(tuple(words[: place + 2]), tuple(words[place + 2 :]), "", module, interpreter, bare)
        if word in ("-", "-c"):
            return None
        if not word.startswith("-"):
            return Program(tuple(words[: place + 1]), tuple(words[place + 1 :]), word, "", interpreter, bare)
        place += 2 if word in ("-X", "-W") else 1
    return None


def _of_launcher(words: list[str], at: int, interpreter: tuple[str, ...], bare: bool = False) -> Program | None:
    """Return the program of torchrun and the like: options, then a script, or a module after -m."""
    as_module = next((i for i in range(at, len(words)) if words[i] in ("-m", "--module")), None)
    script = next((i for i in range(at, len(words)) if words[i].endswith(".py")), None)
    if as_module is not None and (script is None or as_module < script) and as_module + 1 < len(words):
        place = as_module + 1
        return Program(tuple(words[: place + 1]), tuple(words[place + 1 :]), "", words[place], interpreter, bare)
    if script is None:
        return None
    return Program(tuple(words[: script + 1]), tuple(words[script + 1 :]), words[script], "", interpreter, bare)


def _of_shell(words: list[str], at: int) -> Program | None:
    for place in range(at + 1, len(words)):
        word = words[place]
        if re.fullmatch(r"-[a-z]*c", word):
            return None
        if not word.startswith(("-", "+")):
            return Program(tuple(words[: place + 1]), tuple(words[place + 1 :]), word)
    return None


def _shebang(file: str | Path | None) -> tuple[str, ...]:
    """Return the interpreter in the first line of a script; () if there is none or it is looked up on PATH."""
    if not file:
        return ()
    try:
        with Path(file).open("rb") as opened:
            line = opened.readline(1000).decode("utf-8", "replace")
    except OSError:
        return ()
    words = line[2:].split() if line.startswith("#!") else []
    return (words[0],) if words and PYTHON.fullmatch(PurePath(words[0]).name) else ()
