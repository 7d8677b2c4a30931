"""Generated text continues what the model was trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.generation import continue_text
from ablatrix.trainer.rundir.text_request import Request
from tests.support.tiny_training import config

SEPARATOR = 4095


def test_the_prompt_follows_the_separator_of_packed_training(offline_cache: Path) -> None:
    codec, request = tokenizer.load("sample", offline_cache), Request("def f(x):", tokens=8)
    sizes = {"vocab_size": SEPARATOR + 1, "block_size": 64}
    model = GPT(config(model=sizes).model, seed=1).eval()
    data = DataConfig(tokenizer="sample", sampling="packed", separator=SEPARATOR, block_size=16)
    after = model.generate(
        torch.tensor([[SEPARATOR, *codec.encode(request.prompt)]]),
        request.tokens,
        do_sample=True,
        top_k=request.top_k,
        generator=torch.Generator().manual_seed(request.seed),
    )
    text = continue_text(model, data, offline_cache, request)
    assert text == codec.decode(after[0, 1:].tolist())
    assert text.startswith(request.prompt)
    assert text != continue_text(model, DataConfig(tokenizer="sample", block_size=16), offline_cache, request)
