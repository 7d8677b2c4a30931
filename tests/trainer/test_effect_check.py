"""The probe: what takes effect has another signature, and every valid configuration can be probed."""

from typing import Any

import pytest

from ablatrix.trainer import effect_check
from ablatrix.trainer.config import RunConfig, validate

CHANGED: dict[str, Any] = {
    **{"n_layer": 2, "n_head": 4, "n_kv_head": 1, "n_embd": 96, "vocab_size": 300, "block_size": 300},
    **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "positions": "alibi", "init_from": "gpt2"},
    **{"feedforward": "relu2", "norm": "none", "norm_placement": "post", "qk_norm": True, "bias": False},
    **{"tie_embeddings": True, "alibi_trainable": True},
    **{"learning_rate": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.2, "optimizer": "sgd", "batch_size": 3},
    **{"momentum": 0.5, "seed": 1},
}


def resolved(section: str = "trainer", **settings: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"file_path": "x"},
        "model": {"model_type": "gpt-nano"},
        "trainer": {},
        "system": {},
    }
    tree["trainer"]["batch_size"] = 16
    tree[section] = {**tree[section], **settings}
    return validate(tree).resolved(100)


def signature(**settings: Any) -> dict[str, str]:
    return effect_check.signature(resolved(**settings).model_dump(mode="json"))


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_a_batch_in_parts_can_be_probed(parts: int) -> None:
    """More parts than the probe's small batch has windows divided by zero."""
    assert (signature(grad_accum=parts) == signature()) == (parts == 1), "dropout is drawn for each part"


@pytest.mark.parametrize(
    ("section", "name"), [(part, name) for part, names in effect_check.EFFECTIVE.items() for name in names]
)
def test_settings_that_need_no_training_to_be_compared(section: str, name: str) -> None:
    """Training shows a difference too, so that skipping it hides nothing."""
    base = {"alibi_trainable": {"positions": "alibi"}, "momentum": {"optimizer": "sgd"}}.get(name, {})
    one, other = resolved(section, **base), resolved(section, **base, **{name: CHANGED[name]})
    assert effect_check.differ_by_settings(one, other) and not effect_check.differ_by_settings(one, one)
    assert effect_check.signature(one.model_dump(mode="json")) != effect_check.signature(other.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("section", "settings", "differ"),
    [
        ("trainer", {"warmup_steps": 5}, True),
        ("trainer", {"warmup_steps": 1}, False),  # the first step is the last of the warm-up
        ("trainer", {"use_cosine": True}, True),
        ("trainer", {"eval_interval": 7}, False),
        ("trainer", {"grad_norm_clip": 100.0}, False),  # it depends on the gradients
        ("data", {"file_path": "y"}, True),
        ("model", {"feedforward": "mine:Mlp"}, False),  # the user's own code may do anything
    ],
)
def test_what_settings_alone_show(section: str, settings: dict[str, Any], differ: bool) -> None:
    assert effect_check.differ_by_settings(resolved(), resolved(section, **settings)) is differ
