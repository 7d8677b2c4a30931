"""`${...}` in experiment files: variables, environment variables and arithmetic, evaluated without eval()."""

from __future__ import annotations

import ast
import math
import operator
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import secrets, yaml_tree
from ablatrix.orchestrator.study.literals import BoolLiteral, settle_switches, text_of
from ablatrix.trainer.config.field_errors import show
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "round": round,
    "min": min,
    "max": max,
    "abs": abs,
    "ceil": math.ceil,
    "floor": math.floor,
    "sqrt": math.sqrt,
}
WORDS = (("command",), ("resume_command",))  # keys whose entries are strings
_PATTERN = re.compile(r"\$\{([^{}]*)\}")
_LARGEST = 10**18


class Variables:
    """The `vars` of an experiment; they may refer to each other."""

    def __init__(self, values: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self._raw = dict(values)
        self._known: dict[str, Any] = {}
        self._open: list[str] = []
        self._environ = environ

    def __getitem__(self, name: str) -> Any:
        if name not in self._raw:
            known = ", ".join(sorted(self._raw)) or "none are defined"
            hint = (
                f"; for the environment write ${{env:{name}}}"
                if name in self._environ
                else nearest(name, list(self._raw))
            )
            raise UserError(f"${{{name}}}: no such variable under vars (known: {known}){hint}")
        if name in self._open:
            raise UserError(f"vars.{name} refers to itself: {' -> '.join([*self._open, name])}")
        if name not in self._known:
            self._open.append(name)
            try:
                self._known[name] = self.fill(self._raw[name])
            finally:
                self._open.pop()
        return self._known[name]

    def fill(self, value: Any) -> Any:
        """Return `value` with each `${...}` replaced; a string that is a single `${...}` takes the type of its value.

        Raise UserError with the expression if it cannot be evaluated.
        """
        if isinstance(value, dict):
            return {key: self.fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.fill(inner) for inner in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _PATTERN.fullmatch(value)
        if whole:
            return self._evaluate(whole[1])
        if "${" in _PATTERN.sub("", value):
            raise UserError(f"{value!r}: `${{` without a closing `}}`")
        return _PATTERN.sub(lambda match: self._within_text(match[1].strip()), value)

    def _within_text(self, expression: str) -> str:
        """Return the replacement of `${...}` in a longer string: a variable as written, a result as YAML spells it."""
        value = self._evaluate(expression)
        if expression.startswith("env:"):
            return self._from_environment(expression)[1]
        name = expression if expression in self._raw else expression.removeprefix("vars.")
        reference = _PATTERN.fullmatch(str(self._raw.get(name, "")))
        if reference:
            return self._within_text(reference[1].strip())
        if isinstance(value, dict | list):
            raise UserError(f"${{{expression}}}: a {'list' if isinstance(value, list) else 'mapping'} within a string")
        return "" if value is None else text_of(value)

    def _evaluate(self, expression: str) -> Any:
        expression = expression.strip()
        if expression in self._raw:
            return self[expression]
        refuse_foreign(expression)
        if expression.startswith("env:"):
            return self._from_environment(expression)[0]
        try:
            with warnings.catch_warnings(action="ignore"):  # SyntaxWarning
                tree = ast.parse(expression, mode="eval")
            return self._node(tree.body)
        except UserError:
            raise
        except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
            reason = "not an expression" if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"${{{expression}}}: {reason}") from None

    def _from_environment(self, expression: str) -> tuple[Any, str]:
        """Return the value of `env:NAME,default` and its text. With a default, an empty variable counts as unset."""
        name, comma, default = (part.strip() if part != "," else part for part in expression[4:].partition(","))
        if name in self._environ and (self._environ[name] or not comma):
            return yaml_tree.parse_or_text(self._environ[name]), self._environ[name]
        if not comma:
            raise UserError(f"${{{expression}}}: {name} is not set; set it or write ${{env:{name},default}}")
        value = yaml_tree.parse_or_text(default) if default else None
        return value, value if isinstance(value, str) else default

    def _node(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return node.value if isinstance(node.value, str) else self._checked(node.value)
        if isinstance(node, ast.Name):
            return self[node.id]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vars":
            return self[node.attr]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._number(node.left), self._number(node.right)
            if isinstance(node.op, ast.Pow) and abs(right) > 64:
                raise ValueError("exponent over 64")
            return self._checked(_OPERATORS[type(node.op)](left, right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return self._checked(_OPERATORS[type(node.op)](self._number(node.operand)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            if node.keywords:
                raise ValueError("named arguments are not supported")
            return self._checked(_FUNCTIONS[node.func.id](*(self._number(arg) for arg in node.args)))
        raise ValueError(f"only numbers, variables, + - * / // % ** and {', '.join(sorted(_FUNCTIONS))}() are allowed")

    def _number(self, node: ast.AST) -> int | float:
        value = self._node(node)
        if isinstance(value, bool | BoolLiteral) or not isinstance(value, int | float):
            raise ValueError(f"{show(value)} is not a number")
        return value

    @staticmethod
    def _checked(value: Any) -> Any:
        if isinstance(value, complex) or abs(value) > _LARGEST:
            raise ValueError("the result is not a reasonable number")
        return value


def vars_of(tree: Tree) -> dict[str, Any]:
    """Return the `vars` of a tree as written."""
    values = tree.get(("vars",))
    return values if isinstance(values, dict) else {}


def fill_tree(tree: Tree, variables: Variables, problems: list[str]) -> dict[str, Any]:
    """Return the tree's data with all `${...}` replaced; expressions that fail are added to `problems`.

    Raise ConfigError if a value turns out to be a secret.
    """
    escaped = secrets.escaped_names(tree.data)
    found: list[str] = []

    def fill(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner, (*path, key)) for key, inner in value.items()}
        try:
            filled = variables.fill(value)
        except UserError as error:
            problems.append(f"{tree.position(path)}: {'.'.join(path)}: {error}")
            return value
        if filled != value:
            found.extend(secrets.find_secrets(tree, filled, path, escaped))
        return settle_switches(filled, as_text=path[:1] in WORDS)

    filled: dict[str, Any] = fill({key: value for key, value in tree.data.items() if key != "vars"}, ())
    secrets.refuse(found)
    return filled


def refuse_foreign(expression: str) -> None:
    """Raise UserError on OmegaConf, Hydra or bash syntax, saying what to write instead."""
    shown = f"${{{expression[:80]}}}"
    bash = re.fullmatch(r"(?:env:)?([A-Za-z_]\w*):[-=](.*)", expression)
    environment = re.fullmatch(r"(?:oc\.env:|oc\.decode:|env\.|ENV:|ENV\.|os\.environ\.)\s*(\w+)\s*(,.*)?", expression)
    if bash:
        raise UserError(f"{shown}: write ${{env:{bash[1]},{bash[2]}}}")
    if environment:
        raise UserError(f"{shown}: write ${{env:{environment[1]}{environment[2] or ''}}}")
    if expression.startswith(".") or re.fullmatch(r"(?!vars\.)[A-Za-z]\w*(\.[A-Za-z]\w*)+", expression):
        name = expression.rpartition(".")[2]
        raise UserError(
            f"{shown}: only variables can be referenced; put `{name}: ...` under vars and write "
            f"${{{name}}} in both places"
        )
    resolver = re.match(r"([A-Za-z_][\w.]*):(?!=)", expression)
    if resolver and resolver[1] != "env":
        raise UserError(
            f"{shown}: there is no ${{{resolver[1]}:...}}; there are ${{name}}, ${{env:NAME,default}} and sums"
        )
