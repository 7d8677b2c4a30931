"""Find where each value of a run's configuration was set: file and line, feature, flag, or default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ablatrix.models.config import SHORT_FORMS
from ablatrix.orchestrator.study import scale_checks
from ablatrix.orchestrator.study.command_config import SETTINGS, CommandConfig
from ablatrix.orchestrator.study.interpolation import vars_of
from ablatrix.trainer.config import keys, optimization

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.extends import Overrides
    from ablatrix.orchestrator.study.run_config import Config
    from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree

DEFAULT = "default"
DERIVED = "derived from the others"
SCHEDULE_TWINS = {"trainer.schedule": "trainer.use_cosine", "trainer.use_cosine": "trainer.schedule"}
PHASES = tuple(f"trainer.{name}" for name in optimization.PHASES)


def of_run(loaded: Loaded, features: tuple[str, ...], config: Config) -> dict[str, str]:
    """Return dotted key -> origin for every setting in the configuration of a cell, in order."""
    if isinstance(config, CommandConfig):
        return _of_command(loaded, features, config)
    values = config.flat()
    places = _places(loaded, features)
    if "trainer.epochs" in places:
        places["trainer.max_iters"] = f"trainer.epochs, {places['trainer.epochs']}"
    return {key: places.get(key) or _unset(loaded, key, field, values, places) for key, field in keys()}


def position(loaded: Loaded, features: tuple[str, ...], key: str) -> str:
    """Return `file:line: ` of the key that sets a value in a cell, to prefix a message; "" if none does."""
    if key in loaded.forced:
        return f"--set {key}: "
    levels = loaded.experiment.active_levels(features)
    paths = [(*level.path, key) for level in reversed(levels) if key in level.overrides]
    paths += [("scale", key)] if loaded.experiment.scale and key in loaded.experiment.scale.settings else []
    paths += [("base", key)] if key in loaded.experiment.base else []
    return loaded.at(*paths[0]) if paths else ""


def setter(places: Mapping[str, str], key: str) -> str:
    """Return the origin of an override, looked up in the result of `of_run`."""
    return places.get(key) or places.get(f"{SETTINGS}.{key}", "")


def _of_command(loaded: Loaded, features: tuple[str, ...], config: CommandConfig) -> dict[str, str]:
    places = _places(loaded, features)
    keys = {key: loaded.tree.position((key.partition(".")[0],)) or DEFAULT for key in config.flat()}
    keys["seed"] = loaded.tree.position(("seeds",)) or "default of seeds"
    return keys | {f"{SETTINGS}.{key}": places[key] for key in config.settings}


def _places(loaded: Loaded, features: tuple[str, ...]) -> dict[str, str]:
    """Return the origin of each setting that was given: base, scale, features in the file's order, --set."""
    places = {key: _described(loaded.tree, ("base", key)) for key in loaded.experiment.base}
    for key in loaded.experiment.info:
        places[key] = _described(loaded.tree, ("experiment_info", key.partition(".")[2]))
    scale = loaded.experiment.scale
    for key in scale.settings if scale else ():
        places[key] = f"scale, {_described(loaded.tree, ('scale', key))}"
    if scale and scale.tokens_per_parameter:
        at = loaded.tree.position(("scale", scale_checks.PER_PARAMETER))
        places[scale_checks.STEPS] = f"scale.{scale_checks.PER_PARAMETER}, {at}"
    for level in loaded.experiment.active_levels(features):
        for key in level.overrides:
            places[key] = f"feature {level.label}, {_described(loaded.tree, (*level.path, key))}"
    if tune := loaded.experiment.tune:
        places[tune.setting] = f"tune, {_described(loaded.tree, ('tune',))}"
    return places | dict.fromkeys(loaded.forced, "--set")


def _described(tree: Tree, path: KeyPath) -> str:
    """Return `file:line`, with the expression there and where its variables were set."""
    where = tree.position(path)
    raw = tree.get(path)
    if "${" not in str(raw):
        return where
    used = "; ".join(f"{name}: {at}" for name, at in _variables(tree, raw, set()))
    return f"{where} {raw}" + (f" ({used})" if used else "")


def _variables(tree: Tree, raw: Any, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, position) of the variables in an expression, and of those that they use."""
    known = vars_of(tree)
    for expression in re.findall(r"\$\{([^{}]*)\}", str(raw)):
        for name in re.findall(r"[A-Za-z_]\w*", expression):
            if name in known and name not in seen and not expression.startswith("env:"):
                seen.add(name)
                yield name, tree.position(("vars", name))
                yield from _variables(tree, known[name], seen)


def _unset(loaded: Loaded, key: str, field: Any, values: Overrides, places: Mapping[str, str]) -> str:
    """Return what determined a value that was not set."""
    if key == "system.seed":
        return loaded.tree.position(("seeds",)) or "default of seeds"
    if key == "system.work_dir":
        return "the run's folder"
    if key == "system.cache_dir" and os.environ.get("ABLATRIX_CACHE"):
        return "$ABLATRIX_CACHE"
    if values[key] == (field.get_default(call_default_factory=True) if field.default_factory else field.default):
        return DEFAULT
    if key.startswith("model."):
        return _of_model(key.removeprefix("model."), values)
    twin = SCHEDULE_TWINS.get(key)
    if twin:
        return twin if twin in places else DEFAULT
    if key in ("trainer.momentum", "trainer.nesterov"):
        return f"default of {values['trainer.optimizer']}"
    return "a part of trainer.max_iters" if key in PHASES else DERIVED


def _of_model(name: str, values: Overrides) -> str:
    if name in ("n_layer", "n_head", "n_embd") and values["model.model_type"]:
        return f"model_type {values['model.model_type']}"
    short = next((short for short, setting in SHORT_FORMS.items() if name in (short, setting)), None)
    if short:
        return f"model.{SHORT_FORMS[short] if name == short else short}"
    sources = {"vocab_size": f"tokenizer {values['data.tokenizer']}", "block_size": "data.block_size"}
    return {**sources, "n_kv_head": "model.n_head"}.get(name, DERIVED)
