"""Experiments with all that a shell could take for a word of its own, and what their runs are to be started with.

What a run is to get is computed here from the parts that its file was made of, not by the code under test.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablatrix.orchestrator.study import command_template, hydra_overrides
from ablatrix.orchestrator.study.command_settings import Flags
from ablatrix.trainer.config.paths import expand_path

Settings = dict[str, Any]
Part = tuple[str, str]  # ("text", what stands there) or ("place", the name of a placeholder)
Word = list[Part]

# {touch}: a command that creates the canary; {canary}: its name
PAYLOADS = (
    "$({touch})", "`{touch}`", "; {touch} ;", "\n{touch}\n", "&& {touch}", "|| {touch}", "| {touch}", "& {touch} &",
    "' ; {touch} ; '", '" ; {touch} ; "', "'$({touch})'", "\"$({touch})\"", "'\"'\"'; {touch} #", "\\'; {touch} #",
    "\\\n{touch}\n", "\\", "\\\\", "a\\\nb", "$'\\n{touch}\\n'", "$'\\x27; {touch} #'", "<({touch})", "> {canary}",
    ">>{canary}", "2>{canary}", "&>{canary}", "{{touch,{canary}}}", "!{touch}", "!!", "!$", "~", "~root", "*", "?",
    "[a-z]*", "#", " # {touch}", "#!/bin/sh\n{touch}", "#SBATCH --wrap={touch}", "\n#SBATCH --output={canary}\n",
    "\n#PBS -o {canary}\n", "%j %A_%a %% %x %s %n%(x)s", "{{{{ 7*7 }}}}", "{{{{ cycler.__init__ }}}}",
    "{{% raw %}}", "{{% endif %}}", "{{# x #}}", "{{}} {{0}} {{run_dir}} {{flags}}", "--", "-", "-rf", "-c {touch}",
    "--export=NONE", "--output={canary}", "() {{ :; }}; {touch}", "x=y", "=", "\t", " a  b ", "", "\r",
    "\r\n{touch}\r\n",
    "\x01\x1b[31m\x7f", "\x85\u2028\u2029", "żółw 学习 🐢", "\u202e\u00a0\ufeff", "é e\u0301", "$", "$$", "$?", "$@",
    "$HOME", "$PATH", "$((1+1))", "$0", "<<EOF\n{touch}\nEOF", "EOF\n{touch}", "esac\n{touch}\ncase x in",
    "0) {touch} ;;",
    ";;", "done", "fi", "exit 1", "exec {touch}", "set -x", "'", '"', "'" * 30, "\\" * 31, "a'b\"c`d", "null", "true",
    "1e5", "[1, 2]", "{{a: 1}}", "&a", "*a", "|", ">", "@x", "%y", "- z", "? k", "x: y", "!!python/object:os.system",
    "${{IFS}}{touch}", "${{HOME}}", "$({touch}\n)", "$(\\\n{touch})", "\\$({touch})", "\n", "\n\n", "\v\f", "A" * 300,
)  # fmt: skip
ALPHABET = "aZ09 '\"$`\\\n;&|<>(){}[]*?~!#%=+-_.,:/@^\t\rż🐢\u00a0\x1b"
STYLES = ("--a.b=c", "--a_b=c", "--b c", "--key=value", "a.b=c")
# In the name of a folder: no slash, no NUL, not all dots. {path}: printable, nothing that Slurm itself would read
FOLDERS = (
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY ;", "&& touch CANARY", "a'b", 'a"b', "it's \"so\"", " lead",
    "trail ", "two  blanks", "*", "?[a-z]", "~", "~root", "!x", "#hash", "a#b", "{{ 7*7 }}", "{% raw %}", "${HOME}",
    "$x",
    "-rf", "--help", "żółw 🐢", "a=b", "(x)", "<x>", "a|b", "a&b", "é", "x" * 120, "%j", "100%", "@x", "+", "^", ",",
)  # fmt: skip
UNPRINTABLE = ("new\nline", "new\ntouch CANARY\n", "tab\tx", "\r", "\x1b[31m", "\u202e", "a\n#SBATCH --output=CANARY\n")


@dataclass
class Matrix:
    """One experiment: its file, the folder that it lies in, and what the file was made of."""

    number: int
    folder: str
    tree: dict[str, Any]
    sets: list[str]
    environment: dict[str, str]  # of the shell that submits
    words: list[Word]
    env: dict[str, Word]
    base: Settings
    features: dict[str, Settings]
    forced: Settings = field(default_factory=dict)
    most_tasks: int = 1000  # of an array

    @property
    def is_command(self) -> bool:
        return bool(self.words)

    @property
    def text(self) -> str:
        """The experiment file."""
        return yaml_text(self.tree)

    def settings(self, features: Sequence[str]) -> Settings:
        """What a run of these features is to be trained with."""
        merged = dict(self.base)
        for name in self.features:
            merged |= self.features[name] if name in features else {}
        return merged | self.forced

    def argv(self, features: Sequence[str], places: dict[str, str]) -> list[str]:
        """The words that a run's command is to be started with; places: run_dir, seed and so on."""
        settings, style = self.settings(features), self.tree.get("flags", "--a.b=c")
        named = {name for word in (*self.words, *self.env.values()) for kind, name in word if kind == "place"}
        told: list[str] = []
        for word in self.words:
            if word == [("place", "flags")]:
                told += [w for k, v in settings.items() if k not in named for w in flag(k, v, style)]
            else:
                told.append(self.filled(word, settings, places))
        return told

    def variables(self, features: Sequence[str], places: dict[str, str]) -> dict[str, str]:
        """The environment variables that the command is to have."""
        settings = self.settings(features)
        return {name: self.filled(word, settings, places) for name, word in self.env.items()}

    def filled(self, word: Word, settings: Settings, places: dict[str, str]) -> str:
        style = self.tree.get("flags", "--a.b=c")
        texts = {key: as_text(value, style) for key, value in settings.items()} | places
        if style == "a.b=c" and word not in self.env.values():  # its grammar has tests of its own
            braces = str.maketrans({"{": "{{", "}": "}}"})
            written = "".join(f"{{{text}}}" if kind == "place" else text.translate(braces) for kind, text in word)
            return command_template.render([written], texts, settings, Flags(style="a.b=c"))[0]
        return "".join(text if kind == "text" else texts[text] for kind, text in word)


def as_text(value: Any, style: str) -> str:
    if isinstance(value, str):
        return value
    return hydra_overrides.value(value) if style == "a.b=c" else repr(value)


def flag(key: str, value: Any, style: str) -> list[str]:
    """A setting as words of the command line, as the README says."""
    if style == "a.b=c":
        return [hydra_overrides.override(key, value)]
    if style == "--b c" and (isinstance(value, list) or not as_text(value, style).startswith("-")):
        values = value if isinstance(value, list) else [value]
        return ["--" + key.split(".")[-1], *(as_text(v, style) for v in values)]
    name = {"--a.b=c": key, "--a_b=c": key.replace(".", "_")}.get(style, key.split(".")[-1])
    return [f"--{name}={as_text(value, style)}"]


def yaml_text(tree: Any) -> str:
    """JSON that is YAML too: what YAML takes no other way is escaped."""
    text = json.dumps(tree, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


# ---- drawing


def draw(rng: random.Random, number: int, canary: str, program: str) -> Matrix:
    """A study whose runs are a command (`program`), or now and then our trainer. canary: the file's absolute path."""
    drawer = Drawer(rng, canary)
    names = drawer.names(rng.choice([1, 1, 1, 2]))
    plain = [re.sub(r"[^a-z0-9]", "_", name.lower()) for name in names]  # Hydra takes no other keys
    features = {name: {f"on.n{plain[i]}.f{i}": drawer.value(), f"u.n{i}": i + 1} for i, name in enumerate(names)}
    base = {key: drawer.value() for key in drawer.keys(rng.randint(1, 4))}
    tree: dict[str, Any] = {
        "name": drawer.name(),
        "output": drawer.output(),
        "seeds": rng.choice([[1], [1], [1], [0, 7]]),
    }
    tree |= drawer.design(names) | {"slurm": drawer.slurm()}
    if rng.random() < 0.5:
        tree["experiment_info"] = {"name": drawer.literal(), "description": drawer.literal()}
    words: list[Word] = []
    env: dict[str, Word] = {}
    if rng.random() < 0.8:
        words, env = drawer.command(program, list(base), tree), drawer.env(list(base))
    else:
        base, features = drawer.trainer(names)
    matrix = Matrix(number, drawer.folder(), tree, [], drawer.environment, words, env, base, features)
    matrix.most_tasks = rng.choice([1, 2, 1000, 1000])
    _write(matrix, drawer)
    return matrix


def _write(matrix: Matrix, drawer: Drawer) -> None:
    """The file's tree from what the matrix is made of: some values come in other ways than as they are."""
    tree, rng = matrix.tree, drawer.rng
    tree["base"] = {key: drawer.told(value, tree) for key, value in matrix.base.items()}
    tree["features"] = {
        name: {key: drawer.told(value, tree) for key, value in settings.items()}
        for name, settings in matrix.features.items()
    }
    if matrix.words:
        told = ["".join(map(_spelt, word)) for word in matrix.words]
        as_line = rng.random() < 0.3 and not any(re.fullmatch(r"[&|;<>0-9]+", word) for word in told)
        tree["command"] = shlex.join(told) if as_line else told
        tree["env"] = {name: "".join(map(_spelt, word)) for name, word in matrix.env.items()}
        tree["metrics"] = {"csv": "none.csv"}
    if rng.random() < 0.2:
        key = rng.choice(list(matrix.base))
        if isinstance(matrix.base[key], str) and (matrix.words or "${" not in matrix.base[key]):
            value = drawer.literal() if matrix.words else matrix.base[key]
            matrix.forced[key] = value
            matrix.sets.append(f"{key}={yaml_text(value)}")


def _spelt(part: Part) -> str:
    kind, text = part
    return text.replace("{", "{{").replace("}", "}}") if kind == "text" else f"{{{text}}}"


class Drawer:
    """Draws the parts of one experiment."""

    def __init__(self, rng: random.Random, canary: str) -> None:
        self.rng, self.canary = rng, canary
        self.environment: dict[str, str] = {}

    def text(self) -> str:
        """Any text: payloads, put together, or single characters."""
        rng = self.rng
        if rng.random() < 0.3:
            return "".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 12)))
        name = rng.choice(["CANARY", self.canary])
        if rng.random() < 0.002:
            return "A'" * 30_000
        words = {"touch": f"touch {name}", "canary": name}
        return "".join(rng.choice(PAYLOADS).format(**words) for _ in range(rng.choice([1, 1, 1, 2, 3])))

    def literal(self) -> str:
        """A text that can stand in the file as it is: `${` begins an expression of ours."""
        return re.sub(r"\$\{+", "$", self.text())

    def value(self) -> Any:
        rng = self.rng
        simple: list[Callable[[], Any]] = [
            lambda: rng.randint(-5, 10**6), lambda: rng.choice([True, False, None]), lambda: rng.uniform(-1, 1),
            lambda: [self.item(), rng.randint(0, 9)], lambda: [self.item() for _ in range(rng.randint(1, 3))],
        ]  # fmt: skip
        return rng.choice(simple)() if rng.random() < 0.2 else self.text()

    def item(self) -> str:
        """A text in a list: one that begins like a flag is refused, where items are words."""
        return self.text().lstrip("-")

    def told(self, value: Any, tree: dict[str, Any]) -> Any:
        """How the file says a value: as it is, by a variable, or by the environment of the shell that submits."""
        way = self.rng.random()
        if isinstance(value, list):
            return [self.told(inner, tree) if "${" in str(inner) else inner for inner in value]
        if not isinstance(value, str):
            return value
        if "${" in value or way < 0.1:
            name = f"HOSTILE_{len(self.environment)}"
            self.environment[name] = yaml_text(value)
            return f"${{env:{name}}}"
        if way < 0.2:
            variables = tree.setdefault("vars", {})
            name = f"v{len(variables)}"
            variables[name] = value
            return f"${{{name}}}"
        return value

    def name(self) -> str:
        first = "abcXYZ019"
        rest = "abcXYZ019._+-"
        length = self.rng.choice([0, 1, 5, 5, 5, 20, 60])
        return self.rng.choice(first) + "".join(self.rng.choice(rest) for _ in range(length)) + "z"

    def names(self, count: int) -> list[str]:
        found: dict[str, str] = {}
        while len(found) < count:
            name = self.name()
            found.setdefault(name.lower(), name[:60])
        return [f"{name}{i}" for i, name in enumerate(found.values())]

    def keys(self, count: int) -> list[str]:
        forms = (
            "k{}",
            "m.deep{}",
            "a.b.c{}",
            "+plus{}",
            "~tilde{}",
            "g/h@i{}",
            "K_{}",
            "x-y{}",
        )
        return [self.rng.choice(forms).format(i) for i in range(count)]

    def design(self, names: list[str]) -> dict[str, Any]:
        designs: list[Any] = [
            ["baseline", "one_at_a_time"], ["baseline", "all_on"], ["factorial"], ["baseline", {"factorial": 1}],
            ["leave_one_out"], ["baseline"], [],
        ]  # fmt: skip
        design = self.rng.choice(designs)
        some = self.rng.sample(names, self.rng.randint(1, len(names)))
        return {"design": design, "cells": {f"{self.name()}-c": some}} if not design else {"design": design}

    def slurm(self) -> dict[str, Any]:
        rng = self.rng
        word = "".join(rng.choice("abz09._+:,=@%/&|*[]()") for _ in range(rng.randint(1, 8)))
        found: dict[str, Any] = {"runs_per_job": rng.choice([1, 1, 1, 2, 3]), "cpus_per_task": rng.choice([1, 2, 4])}
        for name in ("partition", "account", "qos", "constraint", "exclude"):
            if rng.random() < 0.15:
                found[name] = "p" + word
        if rng.random() < 0.3:
            found["extra"] = {rng.choice(["nodelist", "gres", "reservation", "licenses", "mail-user"]): "e" + word}
        if rng.random() < 0.3:
            found["setup"] = [f"export SETUP_{i}={shlex.quote(self.literal())}" for i in range(rng.randint(1, 2))]
        if rng.random() < 0.2:
            found["max_parallel"] = rng.randint(1, 9)
        return found

    def path(self) -> str:
        """Any text that is a path and stands for itself: `~`, variables and outer blanks are expanded already."""
        with contextlib.suppress(ValueError):
            return expand_path(self.text()) or "x"
        return "x"

    def command(self, program: str, keys: list[str], tree: dict[str, Any]) -> list[Word]:
        rng = self.rng
        tree["flags"] = rng.choice(STYLES)
        words: list[Word] = [self.word(keys) for _ in range(rng.randint(0, 3))]
        words.insert(rng.randint(0, len(words)), [("place", "flags")])
        if len(tree["seeds"]) > 1 or rng.random() < 0.5:
            words.append([("text", "--seed="), ("place", "seed")])
        if rng.random() < 0.5:
            words.append([("text", "--out="), ("place", rng.choice(["run_dir", "study_dir", "config_file"]))])
        if rng.random() < 0.3:
            tree["workdir"] = rng.choice([".", "{study_dir}", "{run_dir}"])
        return [[("text", program)], *words]

    def word(self, keys: list[str]) -> Word:
        parts: Word = [("text", self.literal())]
        if self.rng.random() < 0.5 and not parts[0][1].endswith("$"):  # ${x} is an expression of ours
            parts.append(("place", self.rng.choice([*keys, "cell", "run_id"])))
            parts += [("text", self.literal())] if self.rng.random() < 0.5 else []
        return parts

    def env(self, keys: list[str]) -> dict[str, Word]:
        return {f"ENV_{i}": self.word(keys) for i in range(self.rng.choice([0, 0, 1, 2]))}

    def folder(self) -> str:
        return self.rng.choice(UNPRINTABLE if self.rng.random() < 0.05 else FOLDERS)

    def output(self) -> str:
        if self.rng.random() < 0.6:
            return "out"
        return (
            "/".join(["o", *(self.rng.choice(FOLDERS) for _ in range(self.rng.randint(1, 2)))])
            .replace("${", "$")
            .replace("/$", "/-$")
        )

    def trainer(self, names: list[str]) -> tuple[Settings, dict[str, Settings]]:
        """Settings of our own trainer, its texts hostile."""
        base: Settings = {"data.file_path": self.path(), "callbacks.wandb_project": self.text() or "x"}
        base |= {"trainer.sample_prompt": [self.text()], "data.tokenizer": "sample", "data.block_size": 32}
        base |= {"model.model_type": "gpt-nano", "trainer.max_iters": 20, "system.cache_dir": self.path()}
        own = ({"model.swiglu": True}, {"model.rope": True}, {"trainer.warmup_steps": 5})
        return base, dict(zip(names, own, strict=False))
