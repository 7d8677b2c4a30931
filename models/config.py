"""Shape of a GPT: presets, validation, parameter and FLOP counts. Free of torch, so that planning stays fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# n_layer, n_head, n_embd
PRESETS: dict[str, tuple[int, int, int]] = {
    "gpt-nano": (3, 3, 48),
    "gpt-micro": (4, 4, 128),
    "gpt-mini": (6, 6, 192),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class GPTConfig(BaseModel):
    """A GPT's architecture. Sizes left out come from `model_type`; an explicit size wins over the preset.

    `resolved()` fills in every size; only a resolved config can build a model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_type: str | None = Field("gpt-mini", description="preset sizes: " + ", ".join(PRESETS))
    n_layer: Size | None = Field(None, description="transformer blocks")
    n_head: Size | None = Field(None, description="attention heads")
    n_embd: Size | None = Field(None, description="width of the residual stream")
    vocab_size: Size | None = Field(None, description="tokens; default: the tokenizer's")
    block_size: Size | None = Field(None, description="longest context; default: data.block_size")
    embd_pdrop: Probability = Field(0.1, description="dropout after the embeddings")
    resid_pdrop: Probability = Field(0.1, description="dropout after each sublayer")
    attn_pdrop: Probability = Field(0.1, description="dropout of the attention weights")
    swiglu: bool = Field(False, description="SwiGLU feed-forward in place of GELU (Shazeer 2020)")
    rmsnorm: bool = Field(False, description="RMSNorm in place of LayerNorm (Zhang & Sennrich 2019)")
    rope: bool = Field(False, description="rotary positions in place of learned ones (Su et al. 2021)")

    @field_validator("model_type")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return name

    @model_validator(mode="after")
    def _sizes_fit(self) -> GPTConfig:
        n_layer, n_head, n_embd = self.sizes()
        if None in (n_layer, n_head, n_embd):
            raise ValueError("without model_type, n_layer, n_head and n_embd must all be given")
        assert n_head is not None and n_embd is not None
        if n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) is not divisible by n_head ({n_head})")
        if self.rope and (n_embd // n_head) % 2:
            raise ValueError(f"rope needs an even head size, but n_embd / n_head = {n_embd // n_head}")
        return self

    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """(n_layer, n_head, n_embd): the explicit ones, else the preset's."""
        preset = PRESETS[self.model_type] if self.model_type else (None, None, None)
        given = (self.n_layer, self.n_head, self.n_embd)
        return tuple(g if g is not None else p for g, p in zip(given, preset, strict=True))  # type: ignore[return-value]

    def resolved(self, vocab_size: int, block_size: int) -> GPTConfig:
        """This config with every size written out; `vocab_size` and `block_size` are used where none was set."""
        n_layer, n_head, n_embd = self.sizes()
        return self.model_copy(
            update={
                "n_layer": n_layer,
                "n_head": n_head,
                "n_embd": n_embd,
                "vocab_size": self.vocab_size or vocab_size,
                "block_size": self.block_size or block_size,
            }
        )


def swiglu_hidden(n_embd: int) -> int:
    """Hidden width at which a SwiGLU (three matrices) has as many parameters as the GELU MLP (two, hidden 4 n_embd).

    Shazeer 2020, "GLU Variants Improve Transformer", takes 2/3 of the hidden size; biases are counted here too. The
    width is a multiple of 8 where that stays within 1% of the MLP's count, else the nearest integer.
    """
    target = 8 * n_embd**2 + 5 * n_embd
    exact = (target - n_embd) / (3 * n_embd + 2)
    for multiple in (8, 1):
        hidden = max(multiple, round(exact / multiple) * multiple)
        if abs(hidden * (3 * n_embd + 2) + n_embd - target) <= 0.01 * target:
            return hidden
    return hidden


def count_parameters(config: GPTConfig) -> int:
    """Trainable parameters of a resolved config: embeddings, blocks, final norm and the untied output head."""
    n_layer, vocab_size, block_size, c = _resolved_sizes(config)
    norm = c if config.rmsnorm else 2 * c
    attention = 4 * c * c + 4 * c
    hidden = swiglu_hidden(c)
    mlp = hidden * (3 * c + 2) + c if config.swiglu else 8 * c * c + 5 * c
    positions = 0 if config.rope else block_size * c
    return vocab_size * c + positions + n_layer * (2 * norm + attention + mlp) + norm + vocab_size * c


def flops_per_token(config: GPTConfig) -> int:
    """Training FLOPs (forward and backward) per token at full context.

    PaLM's count (Chowdhery et al. 2022, appendix B): 6 per parameter of a matrix product plus 12 n_layer n_embd T for
    the attention scores; look-ups of embeddings count nothing.
    """
    n_layer, vocab_size, block_size, c = _resolved_sizes(config)
    lookups = vocab_size * c + (0 if config.rope else block_size * c)
    return 6 * (count_parameters(config) - lookups) + 12 * n_layer * c * block_size


def _resolved_sizes(config: GPTConfig) -> tuple[int, int, int, int]:
    values: list[Any] = [config.n_layer, config.vocab_size, config.block_size, config.n_embd]
    if None in values:
        raise ValueError("the model config is not resolved: call resolved(vocab_size, block_size) first")
    return values[0], values[1], values[2], values[3]
