"""`--set key=value` on the command line: applied to the merged tree, or over the settings of all cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import extends, secrets, yaml_tree
from ablatrix.orchestrator.study.experiment import TOP_LEVEL
from ablatrix.orchestrator.study.extends import CONFIGS, Overrides
from ablatrix.orchestrator.study.levels import settings_blocks
from ablatrix.trainer.config import keys
from ablatrix.trainer.config.suggestions import hint
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.yaml_tree import Tree

POSITION = "--set"
SECTIONS = ("vars", "slurm", "experiment_info", "goal")  # sections whose keys can be set one by one


def parse(texts: Iterable[str]) -> Overrides:
    """Parse `key=value` strings, in order. Raise UserError."""
    parsed: Overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        secrets.refuse_set(key, value)  # before any message that could repeat it
        if not equals:
            raise UserError(f"--set {text}: write --set key=value, for instance --set trainer.max_iters=100")
        parsed[key] = yaml_tree.parse_scalar(value)
        secrets.refuse_set(key, parsed[key])
    return parsed


def variables(options: Overrides) -> Overrides:
    """Return the options that set `vars`."""
    return {key.removeprefix("vars."): value for key, value in options.items() if key.startswith("vars.")}


def apply(tree: Tree, options: Overrides) -> tuple[Tree, Overrides]:
    """Return the tree with the options applied, and the options that are settings: those also override features.

    Raise UserError for a key that does not exist.
    """
    settings = _setting_keys(tree)
    forced: Overrides = {}
    for key, value in options.items():
        section, dot, rest = key.partition(".")
        path: tuple[str, ...] = (section, rest) if dot else (key,)
        if key in settings:
            forced[key], path = value, ("base", key)
        elif key in ("extends", CONFIGS):
            raise UserError(
                f"--set {key}: not allowed here; choose a config with FILE#NAME, or write "
                "`extends: ${site}.yaml` into the file and give --set vars.site=..."
            )
        elif key in TOP_LEVEL:
            tree.data[key] = value
        elif section in SECTIONS and dot and isinstance(tree.data.get(section), dict | None):
            tree.data[section] = {**(tree.data.get(section) or {}), rest: value}
        else:
            raise UserError(f"--set {key}: unknown key{hint(key, [*settings, *TOP_LEVEL])}")
        tree.where[path] = POSITION
    return extends.flatten_settings(tree) if options.keys() & {"base", "features"} else tree, forced


def _setting_keys(tree: Tree) -> list[str]:
    """Return the names of our trainer's settings, or the settings that the file defines for a command."""
    if tree.data.get("command") is None:
        return [key for key, _ in keys()]
    blocks = [block for _, block in settings_blocks(tree.data) if isinstance(block, dict)]
    return list(dict.fromkeys(key for block in blocks for key in block))
