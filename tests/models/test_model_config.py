"""What a model's configuration accepts, means, refuses, and counts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ablatrix.models.config import (
    COMPONENTS,
    SHORT_FORMS,
    GPTConfig,
    count_parameters,
    flops_per_token,
    without_custom_components,
)
from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import from_flags, validate
from ablatrix.trainer.rundir.errors import ConfigError


@pytest.mark.parametrize(("short", "setting"), SHORT_FORMS.items())
def test_short_form_is_the_same_model(short: str, setting: str) -> None:
    by_flag = validate({"model": {short: True}})
    by_name = validate({"model": {setting: short}})
    assert by_flag == by_name == validate({"model": {short: True, setting: short}})
    assert by_flag.fingerprint() == by_name.fingerprint()
    written = json.loads(by_flag.to_json())["model"]
    assert written[short] is True and written[setting] == short
    assert validate(json.loads(by_flag.to_json())) == by_flag


def test_flags_of_the_lab_and_quoted_false() -> None:
    config = from_flags(["--model.swiglu=True", "--model.rope", "true", "--model.rmsnorm=False"]).model
    assert (config.feedforward, config.positions, config.norm) == ("swiglu", "rope", "layernorm")


def test_another_component_leaves_the_short_form_off() -> None:
    config = GPTConfig(positions="alibi", feedforward="relu2", norm="none", swiglu=False)
    assert not (config.rope or config.swiglu or config.rmsnorm)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"rope": True, "positions": "alibi"}, "rope: true contradicts positions: alibi; keep one of the two"),
        ({"rope": True, "positions": "learned"}, "rope: true contradicts positions: learned; keep one of the two"),
        ({"rope": False, "positions": "rope"}, "rope: false contradicts positions: rope; keep one of the two"),
        ({"swiglu": True, "feedforward": "geglu"}, "swiglu: true contradicts feedforward: geglu"),
        ({"swiglu": True, "feedforward": "a.b:C"}, "swiglu: true contradicts feedforward: a.b:C"),
        ({"rmsnorm": True, "norm": "none"}, "rmsnorm: true contradicts norm: none"),
        ({"alibi_trainable": True}, "alibi_trainable: true needs positions: alibi, not learned"),
        ({"norm": "none", "norm_placement": "post"}, "norm_placement: post needs a norm, but norm is none"),
        ({"positions": "alibis"}, r"unknown 'alibis' \(did you mean alibi\?\); known: learned, rope, alibi, "),
        ({"feedforward": "my_module.MyMLP"}, "known: gelu, .*, or your own as package.module:Class"),
        ({"feedforward": "os; import sys:X"}, "or your own as package.module:Class"),
        ({"norm_placement": "both"}, "must be one of pre, post, found 'both'"),
        ({"n_kv_head": 4}, r"n_head \(6\) is not divisible by n_kv_head \(4\)"),
        ({"n_kv_head": 12}, r"n_head \(6\) is not divisible by n_kv_head \(12\)"),
        ({"positions": "rope", "n_head": 64}, "rope needs an even head size, but n_embd / n_head = 3"),
    ],
)
def test_contradictions_are_refused(model: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        validate({"model": model})
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_two_contradictions_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"swiglu: true .*; rope: true"):
        validate({"model": {"swiglu": True, "feedforward": "gelu", "rope": True, "positions": "none"}})


@pytest.mark.parametrize(
    ("flag", "positions"),
    [("--model.rope=true", "rope"), ("--model.positions=none", "none"), ("--model.rope=false", "learned")],
)
def test_a_flag_wins_over_what_the_file_says_in_other_words(tmp_path: Any, flag: str, positions: str) -> None:
    for before in ("alibi", "rope", "learned"):
        path = tmp_path / f"{before}.json"
        path.write_text(validate({"model": {"positions": before}}).to_json())
        assert from_flags([f"--config={path}", flag]).model.positions == positions
    with pytest.raises(ConfigError, match="rope: true contradicts positions: alibi"):
        from_flags([f"--config={path}", "--model.rope=true", "--model.positions=alibi"])


def test_resolved_writes_the_heads_of_keys_out() -> None:
    assert GPTConfig().resolved(11, 8).n_kv_head == 6
    assert GPTConfig(n_kv_head=2).resolved(11, 8).n_kv_head == 2


def counted(config: GPTConfig) -> tuple[int, int]:
    """Parameters and FLOPs per token from the modules: 6 for each weight that is not only looked up."""
    model = GPT(config, seed=None)
    assert config.n_layer and config.n_embd and config.block_size
    owners = [(m, p) for m in model.modules() for p in m.parameters(recurse=False)]
    weights = {id(p): p.numel() for _, p in owners}
    worked = {id(p): p.numel() for m, p in owners if not isinstance(m, nn.Embedding)}
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return sum(weights.values()), 6 * sum(worked.values()) + attention


EVERY = list(itertools.product(COMPONENTS["positions"], COMPONENTS["feedforward"], COMPONENTS["norm"]))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.sampled_from([(4, 4), (4, 2), (4, 1), (3, 3), (6, 2)]),
    st.sampled_from([2, 6, 16]),
    st.tuples(*[st.booleans()] * 5),
    st.integers(1, 3),
)
@pytest.mark.slow
def test_counts_equal_the_modules(
    parts: tuple[str, str, str], heads: tuple[int, int], size: int, switches: tuple[bool, ...], layers: int
) -> None:
    positions, feedforward, norm = parts
    post, qk_norm, bias, tied, trainable = switches
    config = GPTConfig(
        model_type=None, n_layer=layers, n_head=heads[0], n_kv_head=heads[1], n_embd=heads[0] * size,
        positions=positions, feedforward=feedforward, norm=norm, qk_norm=qk_norm, bias=bias, tie_embeddings=tied,
        norm_placement="post" if post and norm != "none" else "pre",
        alibi_trainable=trainable and positions == "alibi",
    ).resolved(37, 11)  # fmt: skip
    assert (count_parameters(config), flops_per_token(config)) == counted(config)
    model = GPT(config, seed=None)
    assert (model.n_parameters, model.flops_per_token) == counted(config)


def test_counts_of_the_known_models() -> None:
    """GPT-2's 124,439,808 parameters with the tied head of the original, and with the untied one of minGPT."""
    tied = GPTConfig(model_type="gpt2", tie_embeddings=True).resolved(50257, 1024)
    untied = GPTConfig(model_type="gpt2").resolved(50257, 1024)
    assert count_parameters(tied) == 124_439_808
    assert count_parameters(untied) == 124_439_808 + 50257 * 768
    assert flops_per_token(tied) == flops_per_token(untied)


def test_counts_of_a_users_own_part_are_unknown() -> None:
    config = GPTConfig(feedforward="mine.parts:MLP").resolved(37, 11)
    assert count_parameters(config) is None and flops_per_token(config) is None
    assert count_parameters(without_custom_components(config)) == count_parameters(GPTConfig().resolved(37, 11))


def test_planning_does_not_import_torch(tmp_path: Any) -> None:
    import subprocess
    import sys

    code = "import sys, ablatrix.models.config as c; c.GPTConfig(norm='x.y:Z'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
