"""Load an experiment file: read, merge, fill in variables, scan for secrets, validate.

All problems are reported at once, each with file, line and key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ablatrix.orchestrator.study import (
    command_checks,
    extends,
    field_checks,
    find_file,
    scale_checks,
    set_options,
    yaml_tree,
)
from ablatrix.orchestrator.study.designs import design_problems
from ablatrix.orchestrator.study.experiment import EXAMPLES, SECTIONS, TOP_LEVEL, Experiment, Loaded
from ablatrix.orchestrator.study.interpolation import Variables, fill_tree, vars_of
from ablatrix.orchestrator.study.levels import settings_blocks
from ablatrix.orchestrator.study.sbatch_options import find_place
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.config import RunConfig, field_errors, keys
from ablatrix.trainer.config.field_errors import show
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.find_file import Source


def load_experiment(path: Path, sets: Iterable[str] = ()) -> Loaded:
    """Load the experiment in a file. Raise ConfigError with all problems.

    path: a file, `file.yaml#config`, or a name on ABLATRIX_PATH.
    sets: `key=value` overrides from the command line; they take precedence over everything else.
    """
    source = find_file.find(str(path)) or find_file.read_name(str(path))
    options = set_options.parse(sets)
    reader = extends.Reader(set_options.variables(options))
    tree = reader.read(source)
    tree, forced = set_options.apply(tree, options)
    if "name" not in tree.data and source.config is None:
        _ask_for_config(source)
    problems: list[str] = []
    variables = Variables(vars_of(tree))
    data = fill_tree(tree, variables, problems)
    forced = fill_tree(Tree(forced, {(key,): set_options.POSITION for key in forced}), variables, problems)
    if not isinstance(tree.data.get("vars"), dict | None):
        found = show(tree.data["vars"])
        problems.append(f"{tree.position(('vars',))}: vars: must be a mapping of names to values, found {found}")
    return replace(_validate(data, tree, source, forced, problems), files=reader.files)


def _ask_for_config(source: Source) -> None:
    """Raise UserError listing a file's configs if the file has configs but no name."""
    configs = extends.configs_of(yaml_tree.load(source.path))
    if configs:
        choices = ", ".join(f"{source.path}#{name}" for name in configs)
        raise UserError(
            f"{source.path}: several configs, each a study of its own; choose one: {choices} (variants to compare "
            "within one study are `features`)"
        )


def _validate(data: dict[str, Any], tree: Tree, source: Source, forced: dict[str, Any], problems: list[str]) -> Loaded:
    """Return the experiment. Raise ConfigError with `problems` and any found here."""
    unfilled = bool(problems)
    empty = [key for key in SECTIONS if key in data and data[key] is None]  # all its lines are commented out
    data = {key: value for key, value in data.items() if key not in ("extends", *empty)}
    problems += field_checks.remove_malformed_levels(data, tree)
    if data.get("command") is not None:
        problems += command_checks.setting_problems(data, tree)
    else:
        problems += field_checks.settings_problems(data, tree)
        forced = {key: field_checks.convert_setting(key, value) for key, value in forced.items()}
    place = len(problems)
    try:
        loaded = Loaded(Experiment.model_validate(data), tree, source, forced)
    except ValidationError as error:
        for path, errors in field_errors.by_place(error.errors(), data):
            if not (unfilled and any("${" in str(error["input"]) for error in errors)):
                problems.append(_explain(path, errors, tree, str(source)))
    else:
        problems += design_problems(loaded)
        problems += scale_checks.problems(loaded)
        if all(isinstance(block, dict) for _, block in settings_blocks(data)):
            problems += command_checks.problems(loaded)
    if problems:  # otherwise the cells, including their values, are checked next
        values = field_checks.value_problems(data, tree, forced) if data.get("command") is None else []
        raise ConfigError(list(dict.fromkeys((*problems[:place], *values, *problems[place:]))))
    return loaded


def _explain(path: KeyPath, errors: list[Any], tree: Tree, file: str) -> str:
    place, entry = field_errors.split_entry(path)
    position, key, kind = tree.position(place) or file, ".".join(place), errors[0]["type"]
    if kind == "extra_forbidden":
        return f"{position}: {key}: unknown key{_suggest(path, errors[0]['input'])}"
    if kind == "missing" and path == ("name",):
        return f"{file}: name: missing; write `name: my-study`"
    message = field_errors.describe(errors, field_errors.field_at(Experiment, place))
    example = EXAMPLES.get(key) if kind != "value_error" else None
    return f"{position}: {key}: {entry}{message}" + (f"; for example `{example}`" if example else "")


def _suggest(path: KeyPath, value: Any) -> str:
    """Return what to write instead of an unknown key, to end a sentence."""
    key = path[-1]
    model = field_errors.model_at(Experiment, path[:-1])
    known = list(model.model_fields) if model and model is not Experiment else list(TOP_LEVEL)
    if path[0][0] in "._":
        return f"; keys that only hold anchors start with x-: x-{'.'.join(path).lstrip('._')}"
    hint = (find_place(key, known) if path[0] == "slurm" else "") or nearest(key, known)
    if hint:
        return hint
    if len(path) > 1:
        return f"; keys: {', '.join(known)}"
    # a mapping is probably a section, anything else a setting
    meant = list(RunConfig.model_fields) if isinstance(value, dict) else [name for name, _ in keys()]
    setting = nearest(key, [name for name in meant if not name.startswith("info.")])
    return setting.replace("did you mean ", "settings go under base: did you mean base.")
