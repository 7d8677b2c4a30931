"""Features and their levels, and the places in an experiment file that contain settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.yaml_tree import KeyPath


@dataclass(frozen=True)
class Level:
    """A feature at one level: a plain feature has one level, one with `levels:` has several, of which one is on."""

    label: str  # `rope`, or `lr.high` for a level
    path: KeyPath  # in the file
    overrides: Any


def split_levels(features: dict[str, Any]) -> list[list[Level]]:
    """Return the levels of each feature, in the file's order."""
    groups = []
    for name, body in features.items():
        root: KeyPath = ("features", name)
        if isinstance(body, dict) and set(body) == {"levels"} and isinstance(body["levels"], dict):
            levels = body["levels"].items()
            groups.append([Level(f"{name}.{key}", (*root, "levels", key), inner) for key, inner in levels])
        else:
            groups.append([Level(name, root, body)])
    return groups


def settings_blocks(data: dict[str, Any]) -> list[tuple[KeyPath, Any]]:
    """Return (path, settings) for base, scale, and each level of each feature."""
    blocks: list[tuple[KeyPath, Any]] = [((key,), data[key]) for key in ("base", "scale") if key in data]
    features = data.get("features")
    if isinstance(features, dict):
        blocks += [(level.path, level.overrides) for group in split_levels(features) for level in group]
    return blocks
