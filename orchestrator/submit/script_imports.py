"""Find what a Python script needs without running it. Run by the interpreter of a user's command (`python -c`).

Reads {"script" or "module", "folder"} from stdin and writes JSON: the interpreter's version and
environment, imports that it cannot find, a syntax error, and the command-line parsers in use. Standard library only,
Python 3.7 and up.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

MOST_FILES = 200
PARSERS = ["argparse", "click", "typer", "simple_parsing", "jsonargparse", "absl", "tyro", "HfArgumentParser", "hydra"]
CATCHING = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")


def find_file(name: str, roots: list[str]) -> str | None:
    """Return the file of a dotted module in one of these folders, or None, without importing anything."""
    for root in roots:
        path = os.path.join(root or os.curdir, *name.split("."))
        for candidate in (path + ".py", os.path.join(path, "__main__.py"), os.path.join(path, "__init__.py")):
            if os.path.isfile(candidate):
                return candidate
    return None


def is_caught(handler: ast.ExceptHandler) -> bool:
    """True for an `except` that catches ImportError."""
    if handler.type is None:
        return True
    return any(getattr(node, "id", "") in CATCHING for node in ast.walk(handler.type))


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules that a statement imports; `a.b?` if b may be a module or a name in a."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif not node.level and node.module:
        yield node.module
        for alias in node.names:
            yield node.module + "." + alias.name + "?"


def imports(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of the imports that are executed whenever the module runs."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imported(node):
                yield name, node.lineno
        elif isinstance(node, ast.Try):
            if not any(is_caught(handler) for handler in node.handlers):
                yield from imports(node.body)
            yield from imports(node.finalbody)
        elif isinstance(node, ast.If):
            if "__name__" in ast.dump(node.test):
                yield from imports(node.body)
        elif isinstance(node, (ast.With, ast.ClassDef)):
            yield from imports(node.body)


def look(first: str, roots: list[str]) -> dict[str, Any]:
    """Follow the imports of the user's own files, starting at `first`; return what is missing and what they use."""
    found: dict[str, Any] = {"missing": [], "syntax": "", "parsers": [], "lenient": False}
    waiting, seen = [first], {""}
    while waiting and len(seen) < MOST_FILES:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            with open(path, "rb") as file:
                source = file.read()
            tree = ast.parse(source)
        except SyntaxError as error:
            found["syntax"] = f"{path}:{error.lineno}: {error.msg}"
            continue
        except (OSError, ValueError):
            continue
        found["parsers"] += [name for name in PARSERS if re.search(rb"\b%s\b" % name.encode(), source)]
        found["lenient"] = found["lenient"] or b"parse_known_args" in source or b"ignore_unknown" in source
        for name, line in imports(tree.body):
            top = name.split(".")[0]
            own = find_file(name.rstrip("?"), roots)
            if own:
                waiting.append(own)
            if not name.endswith("?") and not is_there(top) and not own:
                found["missing"].append([top, path, line])
    return found


def is_there(top: str) -> bool:
    """True if the interpreter can find a top-level module."""
    try:
        return top in sys.builtin_module_names or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError, AttributeError):
        return True  # it exists, but its spec cannot be read


def main() -> None:
    """Read a question from stdin and print the answer."""
    asked = json.load(sys.stdin)
    sys.path[0] = asked["folder"] if asked["module"] else os.path.dirname(os.path.realpath(asked["script"]))
    answer = {"version": sys.version.split()[0], "prefix": sys.prefix, "no_module": "", "parsers": []}
    if asked["module"]:
        top = asked["module"].split(".")[0]
        first = find_file(asked["module"], sys.path)
        answer["no_module"] = "" if first or (is_there(top) and "." not in asked["module"]) else asked["module"]
    else:
        first = asked["script"]
    own = first and os.path.realpath(first).startswith(os.path.realpath(sys.path[0]) + os.sep)
    if first and (own or not asked["module"]):
        answer.update(look(first, [sys.path[0]]))
    print(json.dumps(answer))


main()
