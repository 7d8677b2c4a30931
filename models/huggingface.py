"""Convert configurations from and to Hugging Face's GPT2LMHeadModel and LlamaForCausalLM. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ablatrix.models.config import GPTConfig, ResolvedGPTConfig

GPT2, LLAMA = "gpt2", "llama"  # `model_type` in a config.json
CLASSES = {GPT2: "GPT2LMHeadModel", LLAMA: "LlamaForCausalLM"}
EPSILON = 1e-5  # epsilon of all norms
ROPE_THETA = 10000.0
# Our feed-forward layers -> names of their activations
ACTIVATIONS = {
    GPT2: {"gelu": "gelu_new", "relu2": "relu2"},
    LLAMA: {"swiglu": "silu", "geglu": "gelu_new", "reglu": "relu"},
}
COMPONENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    GPT2: {"positions": ("learned",), "norm": ("layernorm",)},
    LLAMA: {"positions": ("rope",), "norm": ("rmsnorm",)},
}


class UnsupportedError(ValueError):
    """Neither architecture can represent the model; the message names the component."""


def architecture(config: ResolvedGPTConfig) -> str:
    """Return GPT2 or LLAMA, whichever can represent a model. Raises UnsupportedError saying what each of them lacks."""
    lacking = {kind: _find_lacking(config, kind) for kind in CLASSES}
    for kind, lacks in lacking.items():
        if not lacks:
            return kind
    first, second = (f"{CLASSES[kind]} cannot have {' or '.join(lacks)}" for kind, lacks in lacking.items())
    raise UnsupportedError(f"{first}, and {second}")


def _find_lacking(config: ResolvedGPTConfig, kind: str) -> list[str]:
    """Return the settings of a model that an architecture does not support, such as `positions: alibi`."""
    held = COMPONENTS[kind] | {
        "feedforward": tuple(ACTIVATIONS[kind]),
        "norm_placement": ("pre",),
        "qk_norm": (False,),
        "n_kv_head": (config.n_head,) if kind == GPT2 else (config.n_kv_head,),
    }
    values = {name: getattr(config, name) for name in held}
    lacking = {name: value for name, value in values.items() if value not in held[name]}
    return [f"model.{name}: {str(value).lower() if value is True else value}" for name, value in lacking.items()]


def describe_model(config: ResolvedGPTConfig, end_of_text: int | None = None) -> dict[str, Any]:
    """Return the content of a model's config.json. Raises UnsupportedError if neither architecture can represent it."""
    kind = architecture(config)
    activation = ACTIVATIONS[kind][config.feedforward]
    tree: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    if kind == GPT2:
        sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
        dropout = {name: getattr(config, name) for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
        own = {"n_positions": config.block_size, "activation_function": activation, "layer_norm_epsilon": EPSILON}
        return tree | sizes | dropout | own
    return tree | {
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.n_embd // config.n_head,
        "max_position_embeddings": config.block_size,
        "hidden_act": activation,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.attn_pdrop,
    }


def read_model(tree: Mapping[str, Any]) -> ResolvedGPTConfig:
    """Return the model that a config.json describes. Raises UnsupportedError if Ablatrix has no equivalent model."""
    readers = {GPT2: _read_gpt2, LLAMA: _read_llama}
    kind = tree.get("model_type")
    if kind not in tuple(readers):
        raise UnsupportedError(f"model_type {kind!r} is neither gpt2 nor llama")
    try:
        settings = readers[kind](tree)
        return GPTConfig(model_type=None, **settings).resolved(0, 0)
    except KeyError as error:
        raise UnsupportedError(f"{error.args[0]} is missing") from None
    except ValidationError as error:
        raise UnsupportedError(error.errors()[0]["msg"]) from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise UnsupportedError(f"its settings are invalid ({error})") from None


def _read_gpt2(tree: Mapping[str, Any]) -> dict[str, Any]:
    width = tree["n_embd"]
    _require(tree, "layer_norm_epsilon", EPSILON, default=EPSILON)
    _require(tree, "n_inner", None, 4 * width)
    _require(tree, "scale_attn_weights", True, default=True)
    _require(tree, "scale_attn_by_inverse_layer_idx", False, default=False)
    return {
        **{name: tree[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")},
        "block_size": tree["n_positions"],
        "feedforward": _find_feedforward(tree, GPT2, "activation_function", "gelu_new"),
        "tie_embeddings": tree.get("tie_word_embeddings", True),
    }


def _read_llama(tree: Mapping[str, Any]) -> dict[str, Any]:
    heads = tree["num_attention_heads"]
    rotary = tree.get("rope_parameters") or {}
    _require({"rms_norm_eps": 1e-6} | dict(tree), "rms_norm_eps", EPSILON)
    _require(tree, "head_dim", None, tree["hidden_size"] // heads)
    _require(tree, "rope_scaling", None)
    _require(rotary, "rope_type", "default", default="default")
    _require({"rope_theta": tree.get("rope_theta", ROPE_THETA)} | rotary, "rope_theta", ROPE_THETA)
    bias = tree.get("attention_bias", False)
    _require(tree, "mlp_bias", bias, default=False)
    return {
        "n_layer": tree["num_hidden_layers"],
        "n_head": heads,
        "n_kv_head": tree.get("num_key_value_heads", heads),
        "n_embd": tree["hidden_size"],
        "vocab_size": tree["vocab_size"],
        "block_size": tree["max_position_embeddings"],
        "positions": "rope",
        "norm": "rmsnorm",
        "feedforward": _find_feedforward(tree, LLAMA, "hidden_act", "silu"),
        "bias": bias,
        "tie_embeddings": tree.get("tie_word_embeddings", False),
    }


def _require(tree: Mapping[str, Any], name: str, *allowed: Any, default: Any = None) -> None:
    value = tree.get(name, default)
    if value not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise UnsupportedError(f"{name} is {value!r}, but models of Ablatrix have {wanted}")


def _find_feedforward(tree: Mapping[str, Any], kind: str, name: str, default: str) -> str:
    ours = {theirs: ours for ours, theirs in ACTIVATIONS[kind].items()}
    _require(tree, name, *ours, default=default)
    return ours[tree.get(name, default)]
