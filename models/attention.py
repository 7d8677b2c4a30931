"""Causal multi-head self-attention, and the positions that act on it: rotary and ALiBi."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models.cpu_kernels import block_attention, causal_mask, distances, other_documents
from ablatrix.models.layers import Dropout, Linear
from ablatrix.models.norms import RMSNorm

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

ROTARY_BASE = 10000.0


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, "RoFormer"): at position t, turn each pair (x_i, x_{i + hs/2}) of a head by
    the angle t * 10000^(-2i/hs).

    A rotation: norms stay, and q . k depends on positions through their distance only. The tables are not parameters
    and not part of a state dict; beyond `block_size` positions they are computed when needed.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        cos, sin = self.rows(block_size, head_size, torch.get_default_device())
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @staticmethod
    def rows(length: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (T, hs) of the first positions, the sine's first half negated: a turn is then two
        products and a roll."""
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        # float64: at t = 1000 a float32 angle is already wrong in the fifth digit
        i = torch.arange(head_size // 2, device=where, dtype=torch.float64)
        t = torch.arange(length, device=where, dtype=torch.float64)
        angle = torch.outer(t, ROTARY_BASE ** (-2 * i / head_size))  # (T, hs/2)
        cos, sin = torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat((-angle.sin(), angle.sin()), dim=-1)
        return cos.to(device, torch.float32), sin.to(device, torch.float32)  # (T, hs) each

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(..., T, hs) -> (..., T, hs); row j stands at position start + j."""
        length, head_size = x.shape[-2:]
        cos, sin = self.cos, self.sin
        if start + length > len(cos):
            cos, sin = self.rows(start + length, head_size, x.device)
        cos, sin = cos[start : start + length], sin[start : start + length]
        return (x * cos + x.roll(head_size // 2, dims=-1) * sin).type_as(x)


def alibi_slopes(n_head: int) -> list[float]:
    """Return the slopes of the heads: 2^(-8/n), 2^(-16/n), ... where n is a power of two.

    For other numbers of heads, as in the paper's published code: those of the largest power of two below it, then every
    second one of the next power of two.
    """
    n = 1 << int(math.log2(n_head))
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    between = [2 ** (-8 * (h + 1) / (2 * n)) for h in range(0, 2 * n, 2)]
    return slopes + between[: n_head - n]


class ALiBi(nn.Module):
    """Attention with linear biases (Press et al. 2021): (key - query) * slope is added to the scores of each head.

    Holds the slopes (nh,). trainable: they are parameters, starting from the paper's; else a buffer outside of the
    state dict.
    """

    slopes: Tensor

    def __init__(self, n_head: int, trainable: bool) -> None:
        super().__init__()
        slopes = torch.tensor(alibi_slopes(n_head))
        if trainable:
            self.slopes = nn.Parameter(slopes)
        else:
            self.register_buffer("slopes", slopes, persistent=False)

    def initialise(self, _: torch.Generator) -> None:
        self.slopes.copy_(torch.tensor(alibi_slopes(len(self.slopes))))


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(hs)) v, each position over those up to itself (Vaswani et al. 2017, eq. 1).

    q, k and v come from one product. With `qk_norm` each head's q and k are normalized, with rotary positions then
    turned; ALiBi adds to the scores; with `n_kv_head` several heads share one of keys and values (Ainslie et al. 2023,
    "GQA"). (B, T, C) -> (B, T, C); documents (B, T): positions with different numbers do not see each other.
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

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        q, k, v = self._split_heads(self.c_attn(x), C // self.n_head)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        slopes = None if self.alibi is None else self.alibi.slopes
        pdrop = self.attn_pdrop if self.training else 0.0
        y = causal_attention(q, k, v, pdrop, slopes, documents=documents)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, nh, T, hs) -> (B, T, nh hs)
        return self.resid_dropout(self.c_proj(y))

    def _split_heads(self, qkv: Tensor, hs: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, (nh + 2 nkv) hs) -> q (B, nh, T, hs), k and v (B, nkv, T, hs)."""
        B, T, _ = qkv.shape  # noqa: N806
        nh, nkv = self.n_head, self.n_kv_head
        if nkv == nh:
            q, k, v = qkv.view(B, T, 3, nh, hs).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
        else:
            heads = qkv.view(B, T, nh + 2 * nkv, hs).transpose(1, 2)  # (B, nh + 2 nkv, T, hs)
            q, k, v = heads.split((nh, nkv, nkv), dim=1)
        return q, k, v


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None = None, *, documents: Tensor | None = None
) -> Tensor:
    """Attend from each position to those up to itself. q (B, nh, T, hs), k and v (B, nkv, T, hs) -> (B, nh, T, hs)

    pdrop: dropout of the weights. slopes (nh,): (key - query) * slope is added to the scores. Where nkv < nh, each head
    of keys and values serves nh / nkv consecutive heads of queries. documents (B, T): a position attends to those with
    its own number only.
    """
    if k.shape[1] != q.shape[1]:
        k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    attend = block_attention if q.device.type == "cpu" else fused_attention
    return attend(q, k, v, pdrop, slopes, documents=documents)


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, nkv, T, hs) -> (B, nh, T, hs), each head several times in a row."""
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
