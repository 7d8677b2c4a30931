"""A row of several documents under the document mask against each document alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ablatrix.models import attention, cpu_kernels
from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT

SEPARATOR, VOCAB, LENGTH = 0, 50, 64
POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "none")


def model(**settings: Any) -> GPT:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": VOCAB, "block_size": LENGTH}
    pdrop = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    found = GPT(GPTConfig(**{**sizes, **pdrop, **settings}), seed=1)
    with torch.no_grad():  # larger weights than at the start, so that attention matters
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return found


def rows() -> Tensor:
    """Two rows of documents that begin with the separator; the second starts in the middle of one."""
    idx = torch.randint(1, VOCAB, (2, LENGTH))
    idx[0, [0, 5, 6, 40]] = SEPARATOR
    idx[1, [17, 63]] = SEPARATOR
    return idx


def alone(network: GPT, idx: Tensor) -> Tensor:
    """Return the logits (B, T, V) of each document computed in a row of its own."""
    found = torch.empty(*idx.shape, VOCAB)
    for i, row in enumerate(idx):
        begins = sorted({0, *(row == SEPARATOR).nonzero().flatten().tolist(), LENGTH})
        for a, b in itertools.pairwise(begins):
            found[i, a:b] = network(row[None, a:b])[0]
    return found


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kernel", ["whole", "blocks", "fused"])
def test_logits_and_gradients_are_those_of_each_document_alone(
    positions: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "BLOCK", 16)
    monkeypatch.setattr(cpu_kernels, "SMALL", 0 if kernel == "blocks" else 1 << 30)
    if kernel == "fused":
        monkeypatch.setattr(attention, "cpu_attention", attention.fused_attention)
    torch.manual_seed(0)
    network = model(positions=positions, qk_norm=True, n_kv_head=2)
    idx, upstream = rows(), torch.randn(2, LENGTH, VOCAB)
    expected = alone(network, idx)
    plain = network(idx)[0]
    network.mask_documents(SEPARATOR)
    found = network(idx)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-2, "without the mask documents see each other"
    weights = [p for p in network.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad((logits * upstream).sum(), weights) for logits in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_trainable_slopes_get_the_gradient_of_each_document_alone() -> None:
    torch.manual_seed(0)
    network = model(positions="alibi", alibi_trainable=True)
    idx, upstream = rows(), torch.randn(2, LENGTH, VOCAB)
    slopes = [p for name, p in network.named_parameters() if name.endswith("slopes")]
    expected = torch.autograd.grad((alone(network, idx) * upstream).sum(), slopes)
    network.mask_documents(SEPARATOR)
    found = torch.autograd.grad((network(idx)[0] * upstream).sum(), slopes)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
