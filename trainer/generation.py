"""Text that the models of runs generate: continuations of a prompt, repeatable by their seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablatrix.models.custom import ComponentError
from ablatrix.models.gpt import GPT
from ablatrix.trainer import weights
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.out_of_memory import first_line
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

TOKENS = 64
TOP_K = 40


@dataclass(frozen=True)
class Request:
    """What to continue, and how: `tokens` more tokens, drawn from the `top_k` likeliest (0: from all)."""

    prompt: str
    tokens: int = TOKENS
    temperature: float = 1.0
    top_k: int = TOP_K
    seed: int = 0


def continue_text(model: GPT, data: DataConfig, cache_dir: Path, request: Request) -> str:
    """Return the prompt and its continuation, after the separator where documents begin with it in training.

    Leaves torch's default generators alone.
    """
    codec = tokenizer.load(data.tokenizer, cache_dir)  # importing transformers takes seconds
    device = model.lm_head.weight.device
    before = [] if data.separator is None else [data.separator]
    idx = torch.tensor([[*before, *codec.encode(request.prompt)] or [0]], device=device)
    out = model.generate(
        idx,
        request.tokens,
        temperature=request.temperature,
        do_sample=True,
        top_k=request.top_k or None,
        generator=torch.Generator(device).manual_seed(request.seed),
    )  # (1, T + tokens)
    return str(codec.decode(out[0, len(before) :].tolist()))


def generate(run_dir: Path, request: Request) -> tuple[str, int]:
    """Return the text that a run's model generates on the CPU, and the step that its weights are of.

    Raises UserError if the run has no weights, or none that its model can be made of.
    """
    config: Any = weights.read_config(run_dir)
    state, step = weights.read_weights(run_dir, config)
    try:
        model = GPT.from_state(config.model, state)
    except (ComponentError, RuntimeError) as error:
        raise UserError(f"{run_dir}: its model cannot be made from its weights: {first_line(error)}") from None
    return continue_text(model, config.data, Path(config.system.cache_dir), request), step
