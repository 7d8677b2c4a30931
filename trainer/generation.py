"""Generate text with the models of runs: continuations of a prompt, reproducible by seed."""

from __future__ import annotations

from functools import lru_cache
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
    from transformers import PreTrainedTokenizerFast

    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.rundir.text_request import Request


def continue_text(model: GPT, data: DataConfig, cache_dir: Path, request: Request) -> str:
    """Return the prompt and its continuation. The prompt follows a separator if documents start with one in training.

    Leaves torch's default generators alone.
    """
    codec = _load_codec(data.tokenizer, cache_dir)
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


@lru_cache(maxsize=1)
def _load_codec(name: str, cache_dir: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer, cached across prompts and runs because loading takes seconds."""
    return tokenizer.load(name, cache_dir)


def generate(run_dir: Path, request: Request) -> tuple[str, int]:
    """Return the text that a run's model generates on the CPU, and the step of its weights.

    Raises UserError if the run has no weights, or if they do not fit its model.
    """
    config: Any = weights.read_config(run_dir)
    state, step = weights.read_weights(run_dir, config)
    try:
        model = GPT.from_state(config.model, state)
    except (ComponentError, RuntimeError) as error:
        raise UserError(f"cannot build the model of {run_dir} from its weights: {first_line(error)}") from None
    return continue_text(model, config.data, Path(config.system.cache_dir), request), step
