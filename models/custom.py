"""Custom components: `model.feedforward: package.module:Class`, likewise `norm` and `positions`.

The class is an nn.Module. It is constructed from the resolved GPTConfig (`config.n_embd`, `config.resid_pdrop`, ...)
and maps (B, T, C) to (B, T, C): a feed-forward layer and a norm map features, positions map token embeddings to
embeddings that depend on their position (T is at most `config.block_size`). No position may see a later one. Weights
are initialized by GPT-2's rule (see `GPT.initialize`), which a method `initialize(generator)` may override. Buffers
must not be random.

The module is looked up like any import, then in the working folder. Its code is not part of a run's hash: give a
changed component a new name.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from ablatrix.models.reference import describe_conflict, import_module, top_level

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

TRIAL = (2, 3)  # B, T of the input with which a new component is tested


class ComponentError(ValueError):
    """A custom component cannot be used; the message names the setting and the reason."""


def build(setting: str, config: ResolvedGPTConfig) -> nn.Module:
    """Return the component that `model.<setting>` names, after a test call. Raises ComponentError."""
    reference = config.custom_components[setting]
    where = f"model.{setting}: {reference}"
    component = _load(where, reference)
    try:
        module = component(config)
    except Exception as error:
        raise ComponentError(f"{where} cannot be built from the model's config: {_describe(error)}") from error
    if not isinstance(module, nn.Module):
        raise ComponentError(f"{where} is not a torch.nn.Module")
    _try(where, module, config)
    return module


def _load(where: str, reference: str) -> type[nn.Module]:
    if conflict := describe_conflict(reference):
        raise ComponentError(f"{where}: {conflict}")
    name, _, attribute = reference.partition(":")
    try:
        module = import_module(reference)
    except Exception as error:
        advice = f"put its folder on PYTHONPATH, or start in the folder that contains {top_level(reference)}"
        hint = f"; {advice}" if isinstance(error, ModuleNotFoundError) else ""
        raise ComponentError(f"{where} cannot be imported: {_describe(error)}{hint}") from error
    if not hasattr(module, attribute):
        raise ComponentError(f"{where}: module {name} ({module.__file__}) has no {attribute}")
    component: type[nn.Module] = getattr(module, attribute)
    return component


def _try(where: str, module: nn.Module, config: ResolvedGPTConfig) -> None:
    """Run a copy in training mode on two inputs that differ only at the last position. Raises ComponentError."""
    shape = (TRIAL[0], min(TRIAL[1], config.block_size), config.n_embd)
    trial = copy.deepcopy(module).train()
    generator = torch.Generator("cpu").manual_seed(0)
    inputs = torch.randn(2, *shape, generator=generator, device="cpu")
    inputs[1, :, :-1] = inputs[0, :, :-1]
    try:
        first, second = _outputs(trial, inputs, generator)
    except Exception as error:
        raise ComponentError(f"{where} fails on an input of shape {shape}: {_describe(error)}") from error
    found = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
    if found != shape:
        raise ComponentError(f"{where} must return its input's shape, {shape}, but returns {found}")
    if first.is_meta or torch.allclose(first[:, :-1], second[:, :-1], rtol=1e-3, atol=1e-5, equal_nan=True):
        return
    raise ComponentError(
        f"{where} lets positions see later ones: its output for the first tokens changes with the last token, so the "
        "model could read the tokens it has to predict"
    )


@torch.no_grad()
def _outputs(module: nn.Module, inputs: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the module's output for each input, with random weights and equal dropout; global RNGs stay untouched."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            parameter.normal_(0.0, 0.1, generator=generator)
    outputs = []
    for x in inputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(module(x.to(torch.get_default_device())))
    return outputs


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
