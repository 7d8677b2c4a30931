"""Experiment files made to keep the reader busy: each a function that writes one into a folder and returns its path.

As a program (`python -m tests.trust.bombs FOLDER NAME...`) it reads them within limits of memory and time, and prints
what came of each.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from ablatrix.orchestrator.study.load import load_experiment

SECONDS = 20  # of one core, for each file
BYTES = 1 << 30  # of memory more than the process has when it begins

HEAD = "name: x\nbase: {data.file_path: a.jsonl, trainer.max_iters: 5}\nfeatures: {rope: {model.rope: true}}\n"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _aliases() -> str:
    return "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(LETTERS[:13])
    )


def _vars(value: Callable[[str], str], depth: int = 24) -> str:
    """Each variable holds the next one twice."""
    lines = [f"  {LETTERS[i]}: {value(LETTERS[i + 1])}\n" for i in range(depth)]
    return HEAD + "vars:\n" + "".join(lines) + f"  {LETTERS[depth]}: xxxxxxxx\nexperiment_info: {{name: '${{a}}'}}\n"


def _expression(text: str) -> str:
    return HEAD + f"vars: {{a: '${{{text}}}'}}\nexperiment_info: {{name: '${{a}}'}}\n"


def _configs(count: int, parents: Callable[[int], str]) -> str:
    body = "".join(f"  c{i}: {{extends: {parents(i)}}}\n" for i in range(count))
    return HEAD + f"configs:\n{body}  c{count}: {{seeds: 2}}\n"


def _many_cells(count: int, rest: str) -> str:
    features = "".join(f"  f{i}: {{model.rope: true}}\n" for i in range(count))
    return f"name: x\nfeatures:\n{features}{rest}"


TEXTS: dict[str, str | bytes] = {
    "alias bomb": _aliases(),
    "recursive alias": "name: &x [*x]\n",
    "recursive mapping": "name: x\nbase: &x {data: *x}\n",
    "10 MB of keys": "".join(f"key{i}: {i}\n" for i in range(700_000)),
    "1 MB of keys": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "1 MB of one list": "a: [" + "x," * 500_000 + "]",
    "1 MB of newlines": "\r" * 1_000_000,
    "1 MB of directives": "%a\n" * 340_000,
    "open quote": 'a: "' + "x\n" * 500_000,
    "deep lists": "[" * 500_000,
    "deep mappings": "{a: " * 200_000,
    "deep blocks": "".join(" " * i + f"k{i}:\n" for i in range(1000)),
    "duplicate keys": HEAD + "name: y\n",
    "duplicate variables": HEAD + "vars: {a: 1, a: 2}\n",
    "tabs": "name: x\nbase:\n\tdata: y\n",
    "NUL": HEAD + "seeds: 1\0\n",
    "NUL by an escape": HEAD + 'output: "a\\0b"\n',
    "half a character": HEAD + 'experiment_info: {name: "\\ud800"}\n',
    "invalid UTF-8": b"name: \xff\xfe\n",
    "UTF-16": HEAD.encode("utf-16"),
    "binary": bytes(range(256)) * 100,
    "long integer": HEAD + "seeds: " + "9" * 5000 + "\n",
    "long hexadecimal": HEAD + "seeds: 0x" + "f" * 500_000 + "\n",
    "large seed": HEAD + "seeds: [18446744073709551615]\n",
    "large float": HEAD + "budget: -1e999\n",
    "merge key": "a: &a {seeds: 1}\n" + HEAD + "slurm: {<<: *a}\n",
    "Python object": HEAD + "seeds: !!python/object/apply:os.system ['touch canary']\n",
    "Python mapping": HEAD + "slurm: !!python/object:os.environ {time: 5}\n",
    "false type": HEAD + "seeds: !!int abc\n",
    "false boolean": HEAD + "seeds: !!bool maybe\n",
    "power": _expression("9**9**9"),
    "repeated word": _expression("''a'' * 10**9"),
    "rounding": _expression("round(5, -10**17)"),
    "shift of a constant": _expression("1" + "0" * 4000),
    "many signs": _expression("-" * 9000 + "1"),
    "many brackets": _expression("(" * 4000 + "1" + ")" * 4000),
    "long sum": _expression("1" + "+1" * 4000),
    "long expression": _expression("1" + "+1" * 300_000),
    "doubled texts": _vars(lambda name: f"'${{{name}}}${{{name}}}'"),
    "doubled lists": _vars(lambda name: f"['${{{name}}}', '${{{name}}}']"),
    "variables in a ring": HEAD + "vars: {a: '${b}', b: '${a}'}\nseeds: '${a}'\n",
    "extends itself": HEAD + "extends: study.yaml\n",
    "chain of configs": _configs(1000, lambda i: f"c{i + 1}"),
    "configs in a ring": _configs(3, lambda i: f"c{(i + 1) % 3}"),
    "factorial design": _many_cells(40, "design: [factorial]\n"),
    "excluded design": _many_cells(40, f"design: [factorial]\nexclude: {[[f'f{i}'] for i in range(40)]}\n"),
    "leave one out": _many_cells(9000, "design: [leave_one_out]\n"),
    "excluded strangers": _many_cells(9000, f"exclude: {[[f'g{i}'] for i in range(20_000)]}\n"),
    "unknown settings": _many_cells(1, "base:\n" + "".join(f"  data.fil_pth{i}: a\n" for i in range(40_000))),
    "many seeds": _many_cells(13, "base: {data.file_path: a}\ndesign: [factorial]\nseeds: 10000\n"),
    "command without settings": "name: x\ncommand: [true]\nbase:\nfeatures: {a: {b: 1}}\n",
    "command with an empty feature": "name: x\ncommand: [true]\nfeatures: {a: }\n",
    "other digits": HEAD + 'slurm: {time: "٠١:٠٠:٠٠"}\n',
}
# Not refused: what they hold is an experiment
FINE: dict[str, str | bytes] = {
    "byte order mark": b"\xef\xbb\xbf" + HEAD.encode(),
    "doubled configs": _configs(60, lambda i: f"[c{i + 1}, c{i + 1}]"),
    "a pair of escapes": HEAD + 'experiment_info: {name: "\\ud83d\\ude00"}\n',
}


def called(folder: Path, name: str) -> Path:
    """The file as the command line names it: one of its configs, where it holds some."""
    return folder / name.replace("/", "_") / ("study.yaml#c0" if "config" in name else "study.yaml")


def write(folder: Path, name: str) -> Path:
    """One of the files, or of the things that are none, at its path in a folder of its own; what `called` says."""
    path = folder / name.replace("/", "_") / "study.yaml"
    path.parent.mkdir(parents=True)
    _put(path, name)
    return called(folder, name)


def _put(path: Path, name: str) -> None:
    folder = path.parent
    if name == "pipe":
        os.mkfifo(path)
    elif name in ("/dev/zero", "/dev/stdin", "/proc/self/mem"):
        path.symlink_to(name)
    elif name == "folder":
        path.mkdir()
    elif name == "chain of files":
        for i in range(300):
            (folder / f"f{i}.yaml").write_text(f"extends: f{i + 1}.yaml\n")
        path.write_text(HEAD + "extends: f0.yaml\n")
    elif name == "extends a pipe":
        os.mkfifo(folder / "pipe.yaml")
        path.write_text(HEAD + "extends: pipe.yaml\n")
    else:
        content = {**TEXTS, **FINE}[name]
        path.write_bytes(content.encode() if isinstance(content, str) else content)


SPECIAL = ("pipe", "/dev/zero", "/dev/stdin", "/proc/self/mem", "folder", "chain of files", "extends a pipe")
REFUSED = (*TEXTS, *SPECIAL)
SLOW = ("1 MB of one list", "1 MB of newlines", "1 MB of directives", "open quote")  # about two seconds each


def main(folder: Path, names: list[str]) -> None:
    """A JSON object: name -> what the error said, '' where there was none."""
    from ablatrix.orchestrator.study import matrix
    from ablatrix.trainer.rundir.errors import UserError

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    found = {}
    for name in names:
        spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, resource.RLIM_INFINITY))
        try:
            matrix.runs(load_experiment(called(folder, name)), lambda _: 512)
            found[name] = ""
        except UserError as error:
            found[name] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
