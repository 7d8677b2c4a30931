"""Causal multi-head self-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models.alibi import ALiBi, distances
from ablatrix.models.config import GPTConfig
from ablatrix.models.dropout import Dropout, keep_mask, shares
from ablatrix.models.layers import Linear
from ablatrix.models.norms import RMSNorm
from ablatrix.models.rotary import Rotary

BLOCK = 64  # queries of a block on a CPU: keys after a block's end are left out
SMALL = 1 << 19  # scores (all heads) up to which blocks cost more than they save


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(hs)) v over the positions up to each one's own (Vaswani et al. 2017, eq. 1).

    q, k and v come from one product. With `qk_norm` each head's q and k are normalised, with rotary positions then
    turned; ALiBi adds to the scores; with `n_kv_head` several heads share one of keys and values (Ainslie et al. 2023,
    "GQA"). (B, T, C) -> (B, T, C)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd and config.n_head and config.block_size
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        self.attn_pdrop = config.attn_pdrop
        head_size = config.n_embd // config.n_head
        self.c_attn = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * head_size, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.q_norm = RMSNorm(head_size) if config.qk_norm else None
        self.k_norm = RMSNorm(head_size) if config.qk_norm else None
        self.rotary = Rotary(head_size, config.block_size) if config.positions == "rope" else None
        self.alibi = ALiBi(config.n_head, config.alibi_trainable) if config.positions == "alibi" else None

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        q, k, v = self._heads(self.c_attn(x), C // self.n_head)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        slopes = None if self.alibi is None else self.alibi.slopes
        y = causal_attention(q, k, v, self.attn_pdrop if self.training else 0.0, slopes)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def _heads(self, qkv: Tensor, hs: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, (nh + 2 nkv) hs) -> q (B, nh, T, hs), k and v (B, nkv, T, hs)."""
        B, T, _ = qkv.shape  # noqa: N806
        nh, nkv = self.n_head, self.n_kv_head
        if nkv == nh:
            q, k, v = qkv.view(B, T, 3, nh, hs).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = qkv.view(B, T, nh + 2 * nkv, hs).transpose(1, 2).split((nh, nkv, nkv), dim=1)
        return q, k, v


def causal_attention(q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None = None) -> Tensor:
    """Attention of each position to those up to its own. q (B, nh, T, hs), k and v (B, nkv, T, hs) -> (B, nh, T, hs)

    pdrop: dropout of the weights. slopes (nh,): (key - query) * slope is added to the scores. Where nkv < nh, each head
    of keys and values serves nh / nkv heads of queries that follow each other.

    On a GPU torch's fused kernels. On a CPU they are two to three times slower at the head sizes of small models than
    the same mathematics as batched products, so there it is written out.
    """
    if k.shape[1] != q.shape[1]:
        k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    if q.device.type != "cpu":
        return fused_attention(q, k, v, pdrop, slopes)
    y: Tensor = _BlockAttention.apply(q, k, v, pdrop, slopes)
    return y


def _repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, nkv, T, hs) -> (B, nh, T, hs), each head several times in a row."""
    B, nkv, T, hs = x.shape  # noqa: N806
    return x[:, :, None].expand(B, nkv, n_head // nkv, T, hs).reshape(B, n_head, T, hs)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None) -> Tensor:
    """`causal_attention` by torch's own function, on any device."""
    if slopes is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=pdrop, is_causal=True)
    length = q.shape[-2]
    bias = slopes[:, None, None] * distances(0, length, q.device)  # (nh, T, T)
    bias = bias + _causal_mask(0, length, bias.dtype, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=pdrop)


class _BlockAttention(torch.autograd.Function):
    """Block by block of queries: s = q k^T / sqrt(hs) + slope (key - query), p = softmax(s), y = dropout(p) v.

    Backward (the chain rule, as in Dao et al. 2022, appendix B.2): with d = rowsum(dy y), which is also
    rowsum(p dp), ds = p (dp - d), where dp is the masked and scaled dy v^T. A slope's gradient is the sum of
    ds (key - query) over all sequences.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None) -> Tensor:
        B, nh, T, hs = q.shape  # noqa: N806
        q, k, v = (t.reshape(B * nh, T, hs) for t in (q, k, v))
        kept = 1 / (1 - pdrop)
        v = v * kept if pdrop else v  # instead of scaling the weights, which are T / hs times as many
        y = torch.empty_like(q)
        # of the whole batch: the order of random numbers must not depend on how many processes share it
        length = T if shares() * B * nh * T * T <= SMALL else BLOCK
        blocks = []
        kept_for_backward = any(ctx.needs_input_grad)
        for start in range(0, T, length):
            stop = min(start + length, T)
            s = torch.baddbmm(
                _causal_mask(start, stop, q.dtype), q[:, start:stop], k[:, :stop].mT, alpha=1 / math.sqrt(hs)
            )  # (B nh, block, stop)
            if slopes is not None:
                s.view(B, nh, stop - start, stop).add_(slopes[:, None, None] * distances(start, stop, q.device))
            p = torch.softmax(s, -1, out=s)
            dropped = keep_mask(p.shape, pdrop, p.dtype).mul_(p) if pdrop else p
            y[:, start:stop] = dropped @ v[:, :stop]
            if kept_for_backward:
                blocks.append((start, stop, p, dropped))
        ctx.kept = kept
        ctx.save_for_backward(q, k, v, y)
        ctx.blocks = blocks
        return y.view(B, nh, T, hs)

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        shape, n_head = grad_outputs[0].shape, grad_outputs[0].shape[1]
        q, k, v, y = ctx.saved_tensors
        dy = grad_outputs[0].reshape(q.shape)
        d = (dy * y).sum(-1, keepdim=True)  # (B nh, T, 1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dslopes = torch.zeros(n_head) if ctx.needs_input_grad[4] else None
        last = True
        blocks, ctx.blocks = ctx.blocks, None
        while blocks:  # from the last, which sees all keys
            start, stop, p, dropped = blocks.pop()
            dyb, db = dy[:, start:stop], d[:, start:stop]
            if dropped is p:
                ds = torch.baddbmm(db, dyb, v[:, :stop].mT, beta=-1).mul_(p)
            else:
                ds = (dyb @ v[:, :stop].mT).mul_(dropped).addcmul_(p, db, value=-1)
            if dslopes is not None:
                heads = ds.view(-1, n_head, stop - start, stop).sum(0, dtype=torch.float32)
                dslopes += (heads * distances(start, stop, q.device)).sum((1, 2))
            dq[:, start:stop] = ds @ k[:, :stop]
            parts = ds.mT @ q[:, start:stop], dropped.mT @ dyb
            for total, part in zip((dk, dv), parts, strict=True):
                total.copy_(part) if last else total[:, :stop].add_(part)
            last = False
        scale = 1 / math.sqrt(q.shape[-1])
        return dq.mul_(scale).view(shape), dk.mul_(scale).view(shape), dv.mul_(ctx.kept).view(shape), None, dslopes


def _causal_mask(start: int, stop: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(stop - start, stop): 0 where query start + i may look at key j <= start + i, else -inf."""
    return torch.full((stop - start, stop), -math.inf, dtype=dtype, device=device).triu_(start + 1)
