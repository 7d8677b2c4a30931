"""The JSON schema of experiment files, for completion, descriptions and misspelled keys in editors.

Editors with yaml-language-server (such as VS Code with its YAML extension) find it through the first line of a file,
`# yaml-language-server: $schema=schema.json`. They read draft 7.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study.designs import DESIGNS, NUMBERS
from ablatrix.orchestrator.study.experiment import NAME, SECTIONS, Experiment
from ablatrix.orchestrator.study.extends import PRIVATE
from ablatrix.orchestrator.study.field_checks import FIXED
from ablatrix.trainer.config import RunConfig

Schema = dict[str, Any]

FILE = "schema.json"
MODELINE = re.compile(r"#\s*yaml-language-server:\s*\$schema=(\S+)\s*")
EXPRESSION = {"type": "string", "pattern": r"\$\{[^{}]*\}", "description": "${variable}, ${env:NAME,default}, ${a * 2}"}
TEXTS = {
    "name": "the study's name, and its folder's under `output`",
    "experiment_info": "a description for readers, shown in every run's log and in the report",
    "extends": "files (`base.yaml`, `sizes.yaml#large`) or configs of this file that this one overrides",
    "vars": "variables for ${...}",
    "configs": "variants in this file, each over its top level: submit FILE#NAME",
    "base": "overrides of the trainer's defaults, in every run; nested or dotted",
    "features": "name -> overrides of the feature, or `levels`, one of which is on",
    "design": "which cells there are: " + ", ".join(DESIGNS),
    "cells": "named combinations of features",
    "scale": "sizes at which every cell is trained: settings with one value per size, from small to large",
    "seeds": "a list, n for 1..n, or planned looks: {start: 3, up_to: 8}",
    "launcher": "auto: Slurm if there is sbatch, else this machine",
    "slurm": "resources of one job",
    "output": "folder of all studies",
    "env": "environment variables of the command",
    "flags": "how settings become arguments of the command, in place of {flags}",
    "metrics": "where the command's losses are found",
}


def build() -> Schema:
    """Return the schema. A number, switch or choice may also be a `${...}`; unknown keys are rejected."""
    run = RunConfig.model_json_schema()
    study = Experiment.model_json_schema()
    definitions = {name: _loosened(node) for name, node in (run["$defs"] | study["$defs"]).items()}
    properties = {name: _loosened(node) for name, node in study["properties"].items()}
    names = {"pattern": f"^{NAME.pattern}$"}
    settings = {"$ref": "#/$defs/settings"}
    levels = {"type": "object", "propertyNames": names, "minProperties": 1, "additionalProperties": settings}
    known = _settings(definitions)
    scale = _scale(definitions.pop("Scale"), known)
    file_or_config = {"type": "string", "minLength": 1}
    properties |= {
        "extends": {"anyOf": [file_or_config, {"type": "array", "items": file_or_config}]},
        "vars": {"type": "object"},
        "base": settings,
        "features": {"type": "object", "propertyNames": names, "additionalProperties": _or_none("feature")},
        "design": {"type": "array", "items": _design()},
        "scale": {"$ref": "#/$defs/scale"},
    }
    properties = {name: _described(node, TEXTS.get(name)) for name, node in properties.items()}
    for name in SECTIONS:
        properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    configs = {"type": "object", "additionalProperties": _or_none("config")}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Ablatrix experiment",
        **_by_trainer(_with_private(properties | {"configs": _described(configs, TEXTS["configs"])})),
        "$defs": {
            **definitions,
            "expression": EXPRESSION,
            "settings": _closed(known),
            "scale": scale,
            "feature": _closed(known | {"levels": levels}) | {"minProperties": 1},
            "config": _by_trainer(_with_private(properties)),
        },
    }


def text() -> str:
    """Return the schema as file content."""
    return json.dumps(build(), indent=1) + "\n"


def outdated(file: Path) -> Path | None:
    """Return the schema file that an experiment file refers to, if it differs from what this version writes."""
    try:
        found = MODELINE.match(file.read_text(encoding="utf-8"))
        path = file.parent / found[1] if found else None
        return path if path and path.is_file() and path.read_text(encoding="utf-8") != text() else None
    except (OSError, ValueError):  # the schema is only a hint
        return None


def _settings(definitions: Schema) -> Schema:
    """Return the trainer's settings, each as `section: {key: ...}` and as `section.key`."""
    known: Schema = {}
    for section, field in RunConfig.model_fields.items():
        annotation: Any = field.annotation
        nodes = definitions.pop(annotation.__name__)["properties"]
        nodes = {f"{section}.{key}": node for key, node in nodes.items() if f"{section}.{key}" not in FIXED}
        if not nodes:
            continue
        definitions.update(nodes)
        dotted = {key: {"$ref": f"#/$defs/{key}"} for key in nodes}
        nested = {key.partition(".")[2]: node for key, node in dotted.items()}
        definitions[section] = _described(_closed(nested), annotation.__doc__)
        known |= {section: {"$ref": f"#/$defs/{section}"}, **dotted}
    return known


def _scale(own: Schema, settings: Schema) -> Schema:
    """Return the schema of `scale`, in which every setting has a list of values."""
    listed = {key: {"type": "array", "minItems": 2, "items": node} for key, node in settings.items() if "." in key}
    sections = [key.partition(".")[0] for key in listed]
    nested = {key: {"type": "object", "additionalProperties": {"type": "array", "minItems": 2}} for key in sections}
    return _closed(own["properties"] | nested | listed)


def _design() -> Schema:
    numbers = {"factorial": {"type": "integer", "minimum": 1}}
    numbers |= {word: {"enum": list(choices)} for word, choices in NUMBERS.items()}
    numbered = [
        _closed({word: {"anyOf": [number, {"$ref": "#/$defs/expression"}]}}) | {"minProperties": 1}
        for word, number in numbers.items()
    ]
    return {"anyOf": [{"enum": list(DESIGNS)}, *numbered, {"$ref": "#/$defs/expression"}]}


def _or_none(definition: str) -> Schema:
    return {"anyOf": [{"$ref": f"#/$defs/{definition}"}, {"type": "null"}]}


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _with_private(properties: Schema) -> Schema:
    """Allow keys that begin with x-, which contain anchors."""
    return _closed(properties) | {"patternProperties": {f"^{PRIVATE}": {}}}


def _by_trainer(study: Schema) -> Schema:
    """Allow any settings with a command, but only our trainer's without one."""
    ours = {name: study["properties"][name] for name in ("base", "features", "scale")}
    properties = study["properties"] | {name: _described({"type": "object"}, TEXTS[name]) for name in ours}
    choice = {"if": {"required": ["command"]}, "else": {"properties": ours}}
    return {**study, "properties": properties, **choice}


def _described(node: Schema, words: str | None) -> Schema:
    return {"description": " ".join(words.split()), **node} if words else node


def _loosened(node: Any) -> Any:
    """Convert a pydantic schema to draft 7, and allow `${...}` where strings are not allowed."""
    if isinstance(node, list):
        return [_loosened(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    loose = {key: value for key, value in node.items() if key != "title"}
    for key in ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties"):
        if key in loose:
            loose[key] = _loosened(loose[key])
    for key in ("properties", "$defs"):
        if key in loose:
            loose[key] = {name: _loosened(inner) for name, inner in loose[key].items()}
    if "prefixItems" in loose:
        loose |= {"items": loose.pop("prefixItems"), "additionalItems": False}
    if loose.get("type") == "string" and not loose.keys() & {"enum", "const", "pattern"}:
        loose["type"] = ["string", "number", "boolean"]  # converted to the string as written
    typed = loose.get("type") in ("integer", "number", "boolean", "array")
    if not typed and not loose.keys() & {"enum", "const", "pattern"}:
        return loose
    texts = {key: loose.pop(key) for key in ("description", "default") if key in loose}
    return {**texts, "anyOf": [loose, {"$ref": "#/$defs/expression"}]}
