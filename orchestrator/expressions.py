"""`${...}` in experiment files: variables, the environment and plain arithmetic, evaluated without eval()."""

from __future__ import annotations

import ast
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator import yamlfile
from trainer.errors import UserError

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
_PATTERN = re.compile(r"\$\{([^{}]*)\}")
_LARGEST = 10**18


class Variables:
    """The `vars` of an experiment; values may use one another."""

    def __init__(self, values: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self._raw = dict(values)
        self._known: dict[str, Any] = {}
        self._open: list[str] = []
        self._environ = environ

    def __getitem__(self, name: str) -> Any:
        if name not in self._raw:
            known = ", ".join(sorted(self._raw)) or "none are defined"
            raise UserError(f"${{{name}}}: no such variable under vars (known: {known})")
        if name in self._open:
            raise UserError(f"vars.{name}: refers to itself: {' -> '.join([*self._open, name])}")
        if name not in self._known:
            self._open.append(name)
            try:
                self._known[name] = self.fill(self._raw[name])
            finally:
                self._open.pop()
        return self._known[name]

    def fill(self, value: Any) -> Any:
        """`value` with each `${...}` replaced. A string that is one `${...}` takes the type of its value.

        Raises UserError naming the expression that cannot be evaluated.
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
        text = _PATTERN.sub(lambda match: str(self._evaluate(match[1])), value)
        if "${" in text:
            raise UserError(f"{value!r}: `${{` without its `}}`")
        return text

    def _evaluate(self, expression: str) -> Any:
        expression = expression.strip()
        if expression.startswith("env:"):
            name, comma, default = expression[4:].partition(",")
            if name in self._environ:
                return yamlfile.parse_scalar(self._environ[name])
            if not comma:
                raise UserError(f"${{{expression}}}: {name} is not set; set it or write ${{env:{name},default}}")
            return yamlfile.parse_scalar(default.strip())
        try:
            return self._node(ast.parse(expression, mode="eval").body)
        except UserError:
            raise
        except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
            reason = "not an expression" if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"${{{expression}}}: {reason}") from None

    def _node(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return node.value
        if isinstance(node, ast.Name):
            return self[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._number(node.left), self._number(node.right)
            if isinstance(node.op, ast.Pow) and abs(right) > 64:
                raise ValueError("exponent over 64")
            return self._checked(_OPERATORS[type(node.op)](left, right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._number(node.operand))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            if node.keywords:
                raise ValueError("named arguments are not supported")
            return self._checked(_FUNCTIONS[node.func.id](*(self._number(arg) for arg in node.args)))
        raise ValueError(f"only numbers, variables, + - * / // % ** and {', '.join(sorted(_FUNCTIONS))}() are allowed")

    def _number(self, node: ast.AST) -> int | float:
        value = self._node(node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")
        return value

    @staticmethod
    def _checked(value: Any) -> Any:
        if isinstance(value, complex) or abs(value) > _LARGEST:
            raise ValueError("the result is not a reasonable number")
        return value
