"""YAML with the types of YAML 1.2's core schema: `5e-4` is a float, `on` and `no` are strings."""

from __future__ import annotations

import re
from typing import Any

import yaml

TAGS = "tag:yaml.org,2002:"


class CoreLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader with YAML 1.2's implicit types instead of 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Return the mapping. Raises yaml.MarkedYAMLError for a key that occurs twice."""
        names = [key.value for key, _ in node.value if key.value != "<<"]
        for index, (key, _) in enumerate(node.value):
            if key.value in names[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
        return super().construct_mapping(node, deep)


PATTERNS: dict[str, re.Pattern[str]] = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    PATTERNS[_tag] = re.compile(f"^(?:{_pattern})\\Z")
    CoreLoader.add_implicit_resolver(f"{TAGS}{_tag}", PATTERNS[_tag], list(_first))
