"""Configuration of a GPT: presets, validation, parameter and FLOP counts. Torch-free, so that planning is fast."""

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
    """A GPT's architecture as set by the user. Sizes left out come from `model_type`; an explicit size wins.

    The booleans `swiglu`, `rmsnorm` and `rope` always agree with `feedforward`, `norm` and `positions`; the model is
    built from the latter.
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
    positions: str = _component("positions", "learned", "position encoding")
    alibi_trainable: bool = Field(False, description="learn ALiBi's slopes, separately in each layer")
    feedforward: str = _component("feedforward", "gelu", "feed-forward layer; gated ones have as many parameters")
    norm: str = _component("norm", "layernorm", "normalization")
    norm_placement: Literal["pre", "post"] = Field("pre", description="norm before a sublayer, or after its residual")
    qk_norm: bool = Field(False, description="RMSNorm of each head's queries and keys (Dehghani et al. 2023)")
    n_kv_head: Size | None = Field(None, description="key and value heads, shared by queries; default: n_head")
    bias: bool = Field(True, description="biases in linear layers and in LayerNorm")
    tie_embeddings: bool = Field(False, description="the head's weight is the token embedding (Press & Wolf 2017)")
    init_from: str | None = Field(
        None, min_length=1, description="initial weights: gpt2, an exported folder, or the folder of a run"
    )
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
    def _expand_short_forms(self) -> GPTConfig:
        """Make each short form agree with its long form, whichever of them was set."""
        problems = []
        for short, setting in SHORT_FORMS.items():
            on, chosen = getattr(self, short), getattr(self, setting)
            if {short, setting} <= self.model_fields_set and on != (chosen == short):
                problems.append(f"{short}: {str(on).lower()} contradicts {setting}: {chosen}; keep one of the two")
            elif short in self.model_fields_set and on:
                object.__setattr__(self, setting, short)  # bypasses frozen=True
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
    def _check_sizes(self) -> GPTConfig:
        n_layer, n_head, n_embd = self.sizes()
        if n_layer is None or n_head is None or n_embd is None:
            raise ValueError("without model_type, n_layer, n_head and n_embd must all be given")
        if n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) is not divisible by n_head ({n_head})")
        if n_head % (self.n_kv_head or n_head):
            raise ValueError(f"n_head ({n_head}) is not divisible by n_kv_head ({self.n_kv_head})")
        if self.positions == "rope" and (n_embd // n_head) % 2:
            raise ValueError(f"rope needs an even head size, but n_embd / n_head = {n_embd // n_head}")
        return self

    @property
    def extrapolates(self) -> bool:
        """True if the model accepts sequences longer than block_size."""
        return self.positions in EXTRAPOLATING

    @property
    def custom_components(self) -> dict[str, str]:
        """Custom components, as setting -> `package.module:Class`."""
        return {name: getattr(self, name) for name, known in COMPONENTS.items() if getattr(self, name) not in known}

    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Return (n_layer, n_head, n_embd), each the explicit value or else the preset's."""
        n_layer, n_head, n_embd = PRESETS[self.model_type] if self.model_type else (None, None, None)
        return self.n_layer or n_layer, self.n_head or n_head, self.n_embd or n_embd

    def resolved(self, vocab_size: int, block_size: int) -> ResolvedGPTConfig:
        """Return this configuration with every size set; the arguments fill in `vocab_size`, `block_size` if unset."""
        n_layer, n_head, n_embd = self.sizes()
        sizes = {
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "n_kv_head": self.n_kv_head or n_head,
            "vocab_size": self.vocab_size or vocab_size,
            "block_size": self.block_size or block_size,
        }
        return ResolvedGPTConfig.model_construct(**{**dict(self), **sizes})


class ResolvedGPTConfig(GPTConfig):
    """A configuration with every size set, from which a model can be built."""

    n_layer: int = Field()
    n_head: int = Field()
    n_embd: int = Field()
    n_kv_head: int = Field()
    vocab_size: int = Field()
    block_size: int = Field()

    @classmethod
    def of(cls, config: GPTConfig) -> ResolvedGPTConfig:
        """Return `config` as a ResolvedGPTConfig. Raises ValueError if a size is missing."""
        if isinstance(config, ResolvedGPTConfig):
            return config
        if None in (*config.sizes(), config.vocab_size, config.block_size):
            raise ValueError("the model config is not resolved: call resolved(vocab_size, block_size) first")
        return config.resolved(0, 0)

    @property
    def hidden_size(self) -> int:
        """The hidden width of a built-in feed-forward layer."""
        return gated_hidden(self.n_embd, self.bias) if self.feedforward in GATED else 4 * self.n_embd


def gated_hidden(n_embd: int, bias: bool = True) -> int:
    """Return the hidden width that gives a gated layer (three matrices) the parameter count of a plain one (two, 4C).

    Shazeer 2020, "GLU Variants Improve Transformer", uses 2/3 of the hidden size; here biases are counted too. The
    width is rounded to a multiple of 8 if that stays within 1% of the plain layer's count, else to the nearest integer.
    """
    fixed = n_embd if bias else 0  # the output bias, which both layers have
    per_unit = 3 * n_embd + (2 if bias else 0)
    target = 4 * n_embd * (2 * n_embd + (1 if bias else 0)) + fixed
    exact = (target - fixed) / per_unit
    for multiple in (8, 1):
        hidden = max(multiple, round(exact / multiple) * multiple)
        if abs(hidden * per_unit + fixed - target) <= 0.01 * target:
            return hidden
    return hidden


def count_parameters(config: GPTConfig) -> int | None:
    """Return the number of trainable parameters of a resolved config; None if a custom component must be measured."""
    if config.custom_components:
        return None
    config = ResolvedGPTConfig.of(config)
    embeddings = config.vocab_size + (config.block_size if config.positions == "learned" else 0)
    if config.tie_embeddings:
        embeddings -= config.vocab_size
    return embeddings * config.n_embd + _count_multiplied(config)


def flops_per_token(config: GPTConfig) -> int | None:
    """Return the training FLOPs (forward and backward) per token at full context; None if a component is custom.

    PaLM's count (Chowdhery et al. 2022, appendix B): 6 per parameter of a matrix product plus 12 n_layer n_embd T for
    the attention scores; embedding lookups are free, but a head tied to the embeddings counts.
    """
    if config.custom_components:
        return None
    config = ResolvedGPTConfig.of(config)
    return training_flops(config, _count_multiplied(config))


def training_flops(config: ResolvedGPTConfig, multiplied: int) -> int:
    """Return the FLOPs per token of a model with `multiplied` parameters in matrix products."""
    return 6 * multiplied + 12 * config.n_layer * config.n_embd * config.block_size


def without_custom_components(config: GPTConfig) -> GPTConfig:
    """Return the config with every custom component replaced by the default, for estimates."""
    return config.model_copy(update={name: COMPONENTS[name][0] for name in config.custom_components})


def _count_multiplied(config: ResolvedGPTConfig) -> int:
    """Return the number of parameters in the blocks, the final norm and the output head, tied or not."""
    c, bias = config.n_embd, int(config.bias)
    norm = {"layernorm": c + bias * c, "rmsnorm": c, "none": 0}[config.norm]
    head_size = c // config.n_head
    qkv = (config.n_head + 2 * config.n_kv_head) * head_size
    attention = qkv * (c + bias) + c * (c + bias)
    attention += 2 * head_size if config.qk_norm else 0
    attention += config.n_head if config.alibi_trainable else 0
    gated, hidden = config.feedforward in GATED, config.hidden_size
    feedforward = (2 if gated else 1) * hidden * (c + bias) + c * (hidden + bias)
    final = norm if config.norm_placement == "pre" else 0
    return config.n_layer * (2 * norm + attention + feedforward) + final + config.vocab_size * c
