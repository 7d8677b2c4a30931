"""Convert state dicts from and to Hugging Face's GPT2LMHeadModel and LlamaForCausalLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablatrix.models.huggingface import GPT2, architecture

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
TRANSPOSED = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")  # GPT-2's Conv1D stores the transpose of a Linear's matrix
BUFFERS = re.compile(r".*\.attn\.(bias|masked_bias)")  # causal masks in older files
# Our names -> Llama's, outside and inside a block; several names: our matrix concatenates their rows
LLAMA_OUTER = {EMBEDDING: "model.embed_tokens.weight", "transformer.ln_f.weight": "model.norm.weight", HEAD: HEAD}
LLAMA_BLOCK = {
    "ln_1": ["input_layernorm"],
    "ln_2": ["post_attention_layernorm"],
    "attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
}


def to_huggingface(config: ResolvedGPTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's weights under Hugging Face's names; a tied head is left out, as in Hugging Face's files.

    Raises UnsupportedError if neither architecture can represent the model.
    """
    kept = {name: value for name, value in state.items() if not (config.tie_embeddings and name == HEAD)}
    convert = _to_gpt2 if architecture(config) == GPT2 else _to_llama
    return {name: value.detach().contiguous() for name, value in convert(config, kept).items()}


def from_huggingface(config: ResolvedGPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return these weights as a state dict for `config`, which `huggingface.read_model` returned.

    If the head is missing, it is the token embedding, as in GPT-2. Weights with other names are left out.
    """
    state = _from_gpt2(weights) if architecture(config) == GPT2 else _from_llama(config, weights)
    if EMBEDDING in state:
        state.setdefault(HEAD, state[EMBEDDING])
    return state


def add_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with zero biases added in the blocks and ln_f where they are missing."""
    added = {}
    for name, value in state.items():
        layer = re.fullmatch(r"(transformer\.(?:h\..*|ln_f))\.weight", name)
        if layer and f"{layer[1]}.bias" not in state:
            added[f"{layer[1]}.bias"] = value.new_zeros(value.shape[0])
    return {**state, **added}


def _to_gpt2(_: ResolvedGPTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = add_biases(state)
    return {name: value.t() if TRANSPOSED.fullmatch(name) else value for name, value in named.items()}


def _from_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, value in weights.items():
        if not BUFFERS.fullmatch(name):
            full = name if name == HEAD else f"transformer.{name.removeprefix('transformer.')}"
            state[full] = value.t() if TRANSPOSED.fullmatch(full) else value
    return state


def _to_llama(config: ResolvedGPTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    head_size = config.n_embd // config.n_head
    rows = {"attn.c_attn": [head_size * n for n in (config.n_head, config.n_kv_head, config.n_kv_head)]}
    named = {}
    for name, value in state.items():
        block = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            named[LLAMA_OUTER[name]] = value
            continue
        layer, ours, kind = block.groups()
        theirs = LLAMA_BLOCK[ours]
        parts = value.split(rows.get(ours, value.shape[0] // len(theirs)))
        named |= {f"model.layers.{layer}.{part}.{kind}": v for part, v in zip(theirs, parts, strict=True)}
    return named


def _from_llama(config: ResolvedGPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {ours: weights[theirs] for ours, theirs in LLAMA_OUTER.items() if theirs in weights}
    for layer in range(config.n_layer):
        for ours, theirs in LLAMA_BLOCK.items():
            for kind in ("weight", "bias"):
                names = [f"model.layers.{layer}.{part}.{kind}" for part in theirs]
                if all(name in weights for name in names):
                    state[f"transformer.h.{layer}.{ours}.{kind}"] = torch.cat([weights[name] for name in names])
    return state
