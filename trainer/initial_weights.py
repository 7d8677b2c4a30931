"""Weights that a run starts from (`model.init_from`): match them to its model by name, check them, load them.

`python -m ablatrix.trainer.initial_weights` reads a JSON list of resolved configurations from stdin and prints a JSON
list with the problems of each, judging by shapes alone.
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
# Weights whose shapes depend on settings that a cell may change; other shapes follow from the sizes
OWNERS = {r".*\.mlp\..*": ("feedforward", "bias"), r".*\.attn\.c_attn\..*": ("n_kv_head",)}


@dataclass(frozen=True)
class Match:
    """The result of matching weights by name.

    taken: weights that the model takes from the source. new: names of weights that keep their initial values. unused:
    names that only the source has.
    """

    taken: dict[str, Tensor]
    new: list[str]
    unused: list[str]


def load_initial(model: GPT, config: RunConfig, quiet: bool = False) -> None:
    """Load the weights that `model.init_from` names into a new model, as far as the names match.

    quiet: log nothing. Raises UserError if the weights cannot be read, ConfigError if they do not fit.
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
    """Return a line that says where the initial weights come from."""
    text = f"initial weights: {len(found.taken)} of {len(found.taken) + len(found.new)} tensors from {source.name}"
    text += f"; not in it, so drawn from the seed: {_join(found.new)}" if found.new else ""
    return text + (f"; not used: {_join(found.unused)}" if found.unused else "")


def _join(names: Iterable[str]) -> str:
    """Return the names as one string, merging the names that differ only in the layer."""
    return ", ".join(dict.fromkeys(re.sub(r"\.h\.\d+\.", ".h.*.", name) for name in names))


def read_source(source: Source, device: str = "cpu") -> dict[str, Tensor]:
    """Return the state dict of a source, with shapes only on device `meta`. Raises UserError."""
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
        raise UserError(f"{SETTING}: cannot read {source.path} ({error}); fetch or export it again") from None


def match(model: GPT, source: Source, state: dict[str, Tensor]) -> Match:
    """Match a model's weights with a source's state dict. Raises ConfigError listing every size that differs."""
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
                f"{tuple(parameter.shape)}; choose weights of a model with these settings"
            )
    if problems:
        raise ConfigError(problems)
    known = {*taken, HEAD} if source.model.tie_embeddings else set(taken)  # a tied head is the same as the embedding
    return Match(taken, new, [name for name in state if name not in known])


def _find_different_sizes(model: ResolvedGPTConfig, source: Source) -> Iterator[str]:
    for name in ("n_layer", "n_head", "n_embd", "vocab_size"):
        ours, theirs = getattr(model, name), getattr(source.model, name)
        if ours != theirs:
            how = "choose their data.tokenizer" if name == "vocab_size" else f"set it to {theirs}"
            yield f"model.{name}: {ours}, but the weights of {SETTING}: {source.name} have {theirs}; {how}"
    both = model.positions == source.model.positions == "learned"
    if both and model.block_size > source.model.block_size:
        yield (
            f"model.block_size: {model.block_size} exceeds the {source.model.block_size} positions of {SETTING}: "
            f"{source.name}; lower data.block_size, or choose different positions"
        )


def _has_another_component(name: str, model: ResolvedGPTConfig, other: ResolvedGPTConfig) -> bool:
    settings = [setting for pattern, owners in OWNERS.items() if re.fullmatch(pattern, name) for setting in owners]
    return bool(model.custom_components) or any(getattr(model, s) != getattr(other, s) for s in settings)


def find_problems(config: RunConfig) -> list[str]:
    """Return the reasons why a resolved configuration cannot start from its initial weights, one line each."""
    try:
        source = find_source(config.model.init_from or "", Path(config.system.cache_dir))
        match(GPT(config.model, seed=None), source, read_source(source, "meta"))
    except ComponentError:  # reported where the model is built
        return []
    except AblatrixError as error:
        return list(error.lines)
    return []


def require(config: RunConfig) -> None:
    """Raise ConfigError if a resolved configuration cannot start from its initial weights, if it sets any."""
    problems = find_problems(config) if config.model.init_from else []
    if problems:
        raise ConfigError(problems)


def main() -> int:
    print(json.dumps([find_problems(validate(tree)) for tree in json.load(sys.stdin)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
