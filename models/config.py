"""Shape of a GPT: presets, validation, parameter and FLOP counts. Free of torch, so that planning stays fast."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ablatrix.models.reference import REFERENCE

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

COMPONENTS: dict[str, tuple[str, ...]] = {
    "positions": ("learned", "rope", "alibi", "sinusoidal", "none"),
    "feedforward": ("gelu", "swiglu", "geglu", "reglu", "relu2"),
    "norm": ("layernorm", "rmsnorm", "none"),
}
EXTRAPOLATING = ("rope", "alibi", "sinusoidal", "none")  # positions without a table of trained rows
GATED = ("swiglu", "geglu", "reglu")
# `swiglu: true` is short for `feedforward: swiglu`
SHORT_FORMS = {"swiglu": "feedforward", "rmsnorm": "norm", "rope": "positions"}

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


def _component(setting: str, default: str, description: str) -> Any:
    known = COMPONENTS[setting]
    choices: list[Any] = [{"enum": list(known)}, {"type": "string", "pattern": f"^{REFERENCE.pattern}$"}]
    text = f"{description}: {', '.join(known)}, or package.module:Class"
    return Field(default, description=text, json_schema_extra={"anyOf": choices})


class GPTConfig(BaseModel):
    """A GPT's architecture. Sizes left out come from `model_type`; an explicit size wins over the preset.

    The booleans `swiglu`, `rmsnorm` and `rope` always agree with `feedforward`, `norm` and `positions`, which are what
    the model is built from.

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
    positions: str = _component("positions", "learned", "how positions are told apart")
    alibi_trainable: bool = Field(False, description="ALiBi's slopes are learned, in each layer its own")
    feedforward: str = _component("feedforward", "gelu", "feed-forward layer; gated ones have as many parameters")
    norm: str = _component("norm", "layernorm", "normalisation")
    norm_placement: Literal["pre", "post"] = Field("pre", description="norm before a sublayer, or after its residual")
    qk_norm: bool = Field(False, description="RMSNorm of each head's queries and keys (Dehghani et al. 2023)")
    n_kv_head: Size | None = Field(None, description="heads of keys and values, shared by queries; default: n_head")
    bias: bool = Field(True, description="biases in linear layers and in LayerNorm")
    tie_embeddings: bool = Field(False, description="the head's weight is the token embedding (Press & Wolf 2017)")
    swiglu: bool = Field(False, description="short for feedforward: swiglu (Shazeer 2020)")
    rmsnorm: bool = Field(False, description="short for norm: rmsnorm (Zhang & Sennrich 2019)")
    rope: bool = Field(False, description="short for positions: rope (Su et al. 2021)")

    @field_validator("model_type")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return name

    @field_validator("positions", "feedforward", "norm")
    @classmethod
    def _known_component(cls, name: str, info: ValidationInfo) -> str:
        known = COMPONENTS[info.field_name or ""]
        if name in known or REFERENCE.fullmatch(name):
            return name
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown {name!r}{hint}; known: {', '.join(known)}, or your own as package.module:Class")

    @model_validator(mode="after")
    def _one_meaning(self) -> GPTConfig:
        """A short form and what it is short for say the same, whichever of them was given."""
        problems = []
        for short, setting in SHORT_FORMS.items():
            on, chosen = getattr(self, short), getattr(self, setting)
            if {short, setting} <= self.model_fields_set and on != (chosen == short):
                problems.append(f"{short}: {str(on).lower()} contradicts {setting}: {chosen}; keep one of the two")
            elif short in self.model_fields_set and on:
                object.__setattr__(self, setting, short)  # the model is frozen to everybody else
            else:
                object.__setattr__(self, short, chosen == short)
        if self.alibi_trainable and self.positions != "alibi":
            problems.append(f"alibi_trainable: true needs positions: alibi, not {self.positions}")
        if self.norm_placement == "post" and self.norm == "none":
            problems.append("norm_placement: post needs a norm, but norm is none")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> GPTConfig:
        n_layer, n_head, n_embd = self.sizes()
        if None in (n_layer, n_head, n_embd):
            raise ValueError("without model_type, n_layer, n_head and n_embd must all be given")
        assert n_head is not None and n_embd is not None
        if n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) is not divisible by n_head ({n_head})")
        if n_head % (self.n_kv_head or n_head):
            raise ValueError(f"n_head ({n_head}) is not divisible by n_kv_head ({self.n_kv_head})")
        if self.positions == "rope" and (n_embd // n_head) % 2:
            raise ValueError(f"rope needs an even head size, but n_embd / n_head = {n_embd // n_head}")
        return self

    @property
    def extrapolates(self) -> bool:
        """Whether the model takes sequences that are longer than block_size."""
        return self.positions in EXTRAPOLATING

    @property
    def own_parts(self) -> dict[str, str]:
        """The user's own components: setting -> `package.module:Class`."""
        return {name: getattr(self, name) for name, known in COMPONENTS.items() if getattr(self, name) not in known}

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
                "n_kv_head": self.n_kv_head or n_head,
                "vocab_size": self.vocab_size or vocab_size,
                "block_size": self.block_size or block_size,
            }
        )


def gated_hidden(n_embd: int, bias: bool = True) -> int:
    """Hidden width at which a gated layer (three matrices) has as many parameters as the plain one (two, hidden 4C).

    Shazeer 2020, "GLU Variants Improve Transformer", takes 2/3 of the hidden size; biases are counted here too. The
    width is a multiple of 8 where that stays within 1% of the plain layer's count, else the nearest integer.
    """
    fixed = n_embd if bias else 0  # the output's bias, in both
    per_unit = 3 * n_embd + (2 if bias else 0)
    target = 4 * n_embd * (2 * n_embd + (1 if bias else 0)) + fixed
    exact = (target - fixed) / per_unit
    for multiple in (8, 1):
        hidden = max(multiple, round(exact / multiple) * multiple)
        if abs(hidden * per_unit + fixed - target) <= 0.01 * target:
            return hidden
    return hidden


def count_parameters(config: GPTConfig) -> int | None:
    """Trainable parameters of a resolved config; None where a part is the user's own: its module has to be counted."""
    if config.own_parts:
        return None
    _, vocab_size, _, c = _resolved_sizes(config)
    return vocab_size * c + _learned_rows(config) + _products(config) - (vocab_size * c if config.tie_embeddings else 0)


def flops_per_token(config: GPTConfig) -> int | None:
    """Training FLOPs (forward and backward) per token at full context; None where a part is the user's own.

    PaLM's count (Chowdhery et al. 2022, appendix B): 6 per parameter of a matrix product plus 12 n_layer n_embd T for
    the attention scores; look-ups of embeddings count nothing, a head that is tied to them does.
    """
    return None if config.own_parts else training_flops(config, _products(config))


def training_flops(config: GPTConfig, products: int) -> int:
    """FLOPs per token of a resolved config of which `products` parameters are more than looked up."""
    n_layer, _, block_size, c = _resolved_sizes(config)
    return 6 * products + 12 * n_layer * c * block_size


def built_in(config: GPTConfig) -> GPTConfig:
    """The config with the default in place of every component of the user's own: for estimates."""
    return config.model_copy(update={name: COMPONENTS[name][0] for name in config.own_parts})


def _products(config: GPTConfig) -> int:
    """Parameters of the blocks, of the final norm and of the output head, tied or not."""
    n_layer, vocab_size, _, c = _resolved_sizes(config)
    assert config.n_head
    bias = 1 if config.bias else 0
    norm = {"layernorm": c + bias * c, "rmsnorm": c, "none": 0}[config.norm]
    head_size = c // config.n_head
    qkv = (config.n_head + 2 * (config.n_kv_head or config.n_head)) * head_size
    attention = qkv * (c + bias) + c * (c + bias)
    attention += 2 * head_size if config.qk_norm else 0
    attention += config.n_head if config.alibi_trainable else 0
    hidden = gated_hidden(c, config.bias) if config.feedforward in GATED else 4 * c
    into = 2 * hidden if config.feedforward in GATED else hidden
    mlp = into * (c + bias) + c * (hidden + bias)
    final = norm if config.norm_placement == "pre" else 0
    return n_layer * (2 * norm + attention + mlp) + final + vocab_size * c


def _learned_rows(config: GPTConfig) -> int:
    _, _, block_size, c = _resolved_sizes(config)
    return block_size * c if config.positions == "learned" else 0


def _resolved_sizes(config: GPTConfig) -> tuple[int, int, int, int]:
    values: list[Any] = [config.n_layer, config.vocab_size, config.block_size, config.n_embd]
    if None in values:
        raise ValueError("the model config is not resolved: call resolved(vocab_size, block_size) first")
    return values[0], values[1], values[2], values[3]
