"""A request for generated text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it: with `tokens` more tokens, drawn from the `top_k` likeliest (0: all)."""

    prompt: str
    tokens: int = 64
    temperature: float = 1.0
    top_k: int = 40
    seed: int = 0
