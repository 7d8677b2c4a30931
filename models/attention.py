"""Causal multi-head self-attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models.compiled_attention import cpu_attention, packed_attention, split_heads
from ablatrix.models.cpu_kernels import causal_mask, distances, other_documents
from ablatrix.models.layers import Dropout, Linear
from ablatrix.models.norms import RMSNorm
from ablatrix.models.positions import ALiBi, Rotary

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(hs)) v, where each position sees itself and earlier ones (Vaswani et al. 2017, eq. 1).

    q, k and v come from one fused projection. With `qk_norm`, each head's q and k are normalized; rotary positions
    are applied after that. ALiBi adds to the scores. With `n_kv_head`, several query heads share a key-value head
    (Ainslie et al. 2023, "GQA"). (B, T, C) -> (B, T, C); documents (B, T): document number of each position; positions
    of different documents do not see each other.
    """

    def __init__(self, config: ResolvedGPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.attn_pdrop = config.attn_pdrop
        head_size = config.n_embd // config.n_head
        self.c_attn = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * head_size, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.q_norm = RMSNorm(head_size) if config.qk_norm else None
        self.k_norm = RMSNorm(head_size) if config.qk_norm else None
        self.rotary = Rotary(head_size, config.block_size) if config.positions == "rope" else None
        self.alibi = ALiBi(config.n_head, config.alibi_trainable) if config.positions == "alibi" else None
        self.changes_heads = config.qk_norm or self.rotary is not None or self.n_kv_head != self.n_head

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        qkv = self.c_attn(x)
        slopes = None if self.alibi is None else self.alibi.slopes
        pdrop = self.attn_pdrop if self.training else 0.0
        if self.changes_heads or x.device.type != "cpu":
            q, k, v = self._split_heads(qkv, C // self.n_head)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
            if self.rotary is not None:
                q, k = self.rotary(q), self.rotary(k)
            y = causal_attention(q, k, v, pdrop, slopes, documents=documents)  # (B, nh, T, hs)
        else:
            y = packed_attention(qkv, self.n_head, pdrop, slopes, documents=documents)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, nh, T, hs) -> (B, T, nh hs)
        return self.resid_dropout(self.c_proj(y))

    def _split_heads(self, qkv: Tensor, hs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split (B, T, (nh + 2 nkv) hs) into q (B, nh, T, hs), k and v (B, nkv, T, hs)."""
        B, T, _ = qkv.shape  # noqa: N806
        nh, nkv = self.n_head, self.n_kv_head
        if nkv == nh:
            return split_heads(qkv, nh)
        heads = qkv.view(B, T, nh + 2 * nkv, hs).transpose(1, 2)  # (B, nh + 2 nkv, T, hs)
        q, k, v = heads.split((nh, nkv, nkv), dim=1)
        return q, k, v


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None = None, *, documents: Tensor | None = None
) -> Tensor:
    """Compute causal attention: q (B, nh, T, hs), k and v (B, nkv, T, hs) -> (B, nh, T, hs).

    pdrop: dropout probability of the attention weights. slopes (nh,): (key - query) * slope is added to the scores. If
    nkv < nh, each key-value head serves nh / nkv consecutive query heads. documents (B, T): document number of each
    position; a position attends only within its own document.
    """
    if k.shape[1] != q.shape[1]:
        k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    attend = cpu_attention if q.device.type == "cpu" else fused_attention
    return attend(q, k, v, pdrop, slopes, documents=documents)


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """Repeat each head nh / nkv times in a row: (B, nkv, T, hs) -> (B, nh, T, hs)."""
    B, nkv, T, hs = x.shape  # noqa: N806
    return x[:, :, None].expand(B, nkv, n_head // nkv, T, hs).reshape(B, n_head, T, hs)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None, *, documents: Tensor | None = None
) -> Tensor:
    """Compute `causal_attention` with torch's fused kernels, on any device."""
    if slopes is None and documents is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=pdrop, is_causal=True)
    length = q.shape[-2]
    bias = causal_mask(0, length, torch.float32, q.device)  # (T, T)
    if slopes is not None:
        bias = bias + slopes[:, None, None] * distances(0, length, q.device)  # (nh, T, T)
    if documents is not None:
        bias = bias.masked_fill(other_documents(documents, 0, length), -math.inf)  # (B, 1 or nh, T, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=pdrop)
