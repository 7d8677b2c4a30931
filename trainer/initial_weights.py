"""Weights that a run starts from (`model.init_from`): matched with its model by name, checked, loaded.

`python -m ablatrix.trainer.initial_weights` reads a JSON list of resolved configurations on stdin and prints a JSON
list with the problems of each, from the shapes alone.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablatrix.models.custom import ComponentError
from ablatrix.models.gpt import GPT
from ablatrix.models.huggingface_weights import HEAD, from_huggingface
from ablatrix.trainer.config import validate
from ablatrix.trainer.data.weights_source import SETTING, Source, find_source
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, UserError
from ablatrix.trainer.weights import read_state

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig
    from ablatrix.trainer.config import RunConfig

logger = logging.getLogger(__name__)

POSITIONS = "transformer.wpe.weight"
# Weights whose shape depends on settings that a cell may change; other shapes follow from the sizes
OWNERS = {r".*\.mlp\..*": ("feedforward", "bias"), r".*\.attn\.c_attn\..*": ("n_kv_head",)}


@dataclass(frozen=True)
class Match:
    """Weights matched by name.

    taken: those that the model gets. new: names that stay at their initial values. unused: names that only the source
    has.
    """

    taken: dict[str, Tensor]
    new: list[str]
    unused: list[str]


def load_initial(model: GPT, config: RunConfig, quiet: bool = False) -> None:
    """Set the weights of a new model to those that `model.init_from` names, as far as it has such weights.

    quiet: write nothing to the log. Raises UserError if they cannot be read, ConfigError if they do not fit.
    """
    if config.model.init_from is None:
        return
    source = find_source(config.model.init_from, Path(config.system.cache_dir))
    found = match(model, source, read_source(source))
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, value in found.taken.items():
            parameters[name].copy_(value)
    if not quiet:
        logger.info(describe(found, source))


def describe(found: Match, source: Source) -> str:
    """Return where the initial weights come from, in one line."""
    text = f"initial weights: {len(found.taken)} of {len(found.taken) + len(found.new)} tensors from {source.name}"
    text += f"; not in it, so drawn from the seed: {_join(found.new)}" if found.new else ""
    return text + (f"; not used: {_join(found.unused)}" if found.unused else "")


def _join(names: Iterable[str]) -> str:
    """Return names with those of all layers as one."""
    return ", ".join(dict.fromkeys(re.sub(r"\.h\.\d+\.", ".h.*.", name) for name in names))


def read_source(source: Source, device: str = "cpu") -> dict[str, Tensor]:
    """Return the state dict of a source; on the device `meta` only the shapes. Raises UserError."""
    if not source.huggingface:
        return read_state(source.path, device)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(source.path), "pt") as file:
            if device == "meta":
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            else:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return from_huggingface(source.model, weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{SETTING}: {source.path}: cannot be read ({error}); fetch or export it again") from None


def match(model: GPT, source: Source, state: dict[str, Tensor]) -> Match:
    """Find the weights of a model in a source's state dict. Raises ConfigError with every size that differs."""
    problems = list(_find_different_sizes(model.config, source))
    if problems:
        raise ConfigError(problems)
    taken, new = {}, []
    for name, parameter in model.named_parameters():
        value = state.get(name)
        if value is not None and name == POSITIONS:
            value = value[: len(parameter)]
        if value is not None and value.shape == parameter.shape:
            taken[name] = value
            continue
        new.append(name)
        if value is not None and not _has_another_component(name, model.config, source.model):
            problems.append(
                f"{SETTING}: {source.name}: {name} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(parameter.shape)}; name weights of a model of these settings"
            )
    if problems:
        raise ConfigError(problems)
    known = {*taken, HEAD} if source.model.tie_embeddings else set(taken)  # a tied head is the embedding
    return Match(taken, new, [name for name in state if name not in known])


def _find_different_sizes(model: ResolvedGPTConfig, source: Source) -> Iterator[str]:
    for name in ("n_layer", "n_head", "n_embd", "vocab_size"):
        ours, theirs = getattr(model, name), getattr(source.model, name)
        if ours != theirs:
            how = "choose their data.tokenizer" if name == "vocab_size" else f"set it to {theirs}"
            yield f"model.{name}: is {ours}, but the weights of {SETTING}: {source.name} have {theirs}; {how}"
    both = model.positions == source.model.positions == "learned"
    if both and model.block_size > source.model.block_size:
        yield (
            f"model.block_size: {model.block_size} exceeds the {source.model.block_size} positions of {SETTING}: "
            f"{source.name}; lower data.block_size, or choose other positions"
        )


def _has_another_component(name: str, model: ResolvedGPTConfig, other: ResolvedGPTConfig) -> bool:
    settings = [setting for pattern, owners in OWNERS.items() if re.fullmatch(pattern, name) for setting in owners]
    return bool(model.custom_components) or any(getattr(model, s) != getattr(other, s) for s in settings)


def find_problems(config: RunConfig) -> list[str]:
    """Return why a resolved configuration cannot start from the weights that it names, one line each."""
    try:
        source = find_source(config.model.init_from or "", Path(config.system.cache_dir))
        match(GPT(config.model, seed=None), source, read_source(source, "meta"))
    except ComponentError:  # reported where the model is built
        return []
    except AblatrixError as error:
        return list(error.lines)
    return []


def require(config: RunConfig) -> None:
    """Raise ConfigError if a resolved configuration cannot start from the weights that it names, if any."""
    problems = find_problems(config) if config.model.init_from else []
    if problems:
        raise ConfigError(problems)


def main() -> int:
    print(json.dumps([find_problems(validate(tree)) for tree in json.load(sys.stdin)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
