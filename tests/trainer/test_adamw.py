"""Our AdamW against torch's, the decay split, clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.trainer.optimizers import AdamW, decaying


def small(**toggles: bool) -> GPT:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "block_size": 8}
    no_dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT(GPTConfig.model_validate({**sizes, **no_dropout, **toggles}), seed=1)


def backward(model: GPT, i: int) -> None:
    x = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(i))
    model.loss(x[:, :-1], x[:, 1:]).backward()


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_equals_torch(clip: float) -> None:
    ours, theirs = small(swiglu=True), small(swiglu=True)
    mine = AdamW(decaying(ours), (0.9, 0.95), 0.3, clip)
    split = {d: [p for _, p, decays in decaying(theirs) if decays is d] for d in (True, False)}
    groups = [{"params": split[True], "weight_decay": 0.3}, {"params": split[False], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    for i in range(10):
        learning_rate = 1e-2 / (i + 1)
        for group in reference.param_groups:
            group["lr"] = learning_rate
        # drawn, not computed: a key's bias has no true gradient, and Adam blows up the rounding in its place
        generator = torch.Generator().manual_seed(i)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        reference.step()
        reference.zero_grad()
        mine.set_learning_rate(learning_rate)
        norm = mine.step()
        mine.zero_grad()
        torch.testing.assert_close(norm, expected)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("toggles", [{}, {"swiglu": True, "rmsnorm": True, "rope": True}], ids=["plain", "all_on"])
def test_only_matrices_of_linear_maps_decay(toggles: dict[str, bool]) -> None:
    model = small(**toggles)
    linear = {name + ".weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {name for name, _, decays in decaying(model) if decays} == linear
    assert {name for name, _, _ in decaying(model)} == {name for name, _ in model.named_parameters()}


def test_state_round_trip() -> None:
    first, second = small(), small()
    a, b = AdamW(decaying(first), (0.9, 0.95), 0.1, 1.0), AdamW(decaying(second), (0.9, 0.95), 0.1, 1.0)
    for i in range(3):
        backward(first, i)
        a.set_learning_rate(1e-2)
        a.step()
        a.zero_grad()
    second.load_state_dict(first.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for model, optimizer in ((first, a), (second, b)):
        backward(model, 9)
        optimizer.set_learning_rate(1e-2)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
