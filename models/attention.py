"""Causal multi-head self-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig
from models.dropout import Dropout, keep_mask
from models.layers import Linear
from models.positions import Rotary

BLOCK = 64  # queries of a block on a CPU: keys after a block's end are left out
SMALL = 1 << 19  # scores (all heads) up to which blocks cost more than they save


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(hs)) v over the positions up to each one's own (Vaswani et al. 2017, eq. 1).

    q, k and v come from one product; with `rope`, q and k are rotated. (B, T, C) -> (B, T, C)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd and config.n_head and config.block_size
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.rotary = Rotary(config.n_embd // config.n_head, config.block_size) if config.rope else None

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        y = causal_attention(q, k, v, self.attn_pdrop if self.training else 0.0)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, pdrop: float) -> Tensor:
    """Attention of each position to those up to its own; `pdrop`: dropout of the weights. All (B, nh, T, hs).

    On a GPU torch's fused kernels. On a CPU they are two to three times slower at the head sizes of small models than
    the same mathematics as batched products, so there it is written out.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=pdrop, is_causal=True)
    y: Tensor = _BlockAttention.apply(q, k, v, pdrop)
    return y


class _BlockAttention(torch.autograd.Function):
    """Block by block of queries: s = q k^T / sqrt(hs), p = softmax(s), y = dropout(p) v.

    Backward (the chain rule, as in Dao et al. 2022, appendix B.2): with d = rowsum(dy y), which is also
    rowsum(p dp), ds = p (dp - d), where dp is the masked and scaled dy v^T.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pdrop: float) -> Tensor:
        B, nh, T, hs = q.shape  # noqa: N806
        q, k, v = (t.reshape(B * nh, T, hs) for t in (q, k, v))
        kept = 1 / (1 - pdrop)
        v = v * kept if pdrop else v  # instead of scaling the weights, which are T / hs times as many
        y = torch.empty_like(q)
        length = T if B * nh * T * T <= SMALL else BLOCK
        blocks = []
        for start in range(0, T, length):
            stop = min(start + length, T)
            s = torch.baddbmm(
                _causal_mask(start, stop, q.dtype), q[:, start:stop], k[:, :stop].mT, alpha=1 / math.sqrt(hs)
            )  # (B nh, block, stop)
            p = torch.softmax(s, -1, out=s)
            dropped = keep_mask(p.shape, pdrop, p.dtype).mul_(p) if pdrop else p
            y[:, start:stop] = dropped @ v[:, :stop]
            blocks.append((start, stop, p, dropped))
        ctx.kept = kept
        ctx.save_for_backward(q, k, v, y)
        ctx.blocks = blocks
        return y.view(B, nh, T, hs)

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        shape = grad_outputs[0].shape
        q, k, v, y = ctx.saved_tensors
        dy = grad_outputs[0].reshape(q.shape)
        d = (dy * y).sum(-1, keepdim=True)  # (B nh, T, 1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        last = True
        blocks, ctx.blocks = ctx.blocks, None
        while blocks:  # from the last, which sees all keys
            start, stop, p, dropped = blocks.pop()
            dyb, db = dy[:, start:stop], d[:, start:stop]
            if dropped is p:
                ds = torch.baddbmm(db, dyb, v[:, :stop].mT, beta=-1).mul_(p)
            else:
                ds = (dyb @ v[:, :stop].mT).mul_(dropped).addcmul_(p, db, value=-1)
            dq[:, start:stop] = ds @ k[:, :stop]
            parts = ds.mT @ q[:, start:stop], dropped.mT @ dyb
            for total, part in zip((dk, dv), parts, strict=True):
                total.copy_(part) if last else total[:, :stop].add_(part)
            last = False
        scale = 1 / math.sqrt(q.shape[-1])
        return dq.mul_(scale).view(shape), dk.mul_(scale).view(shape), dv.mul_(ctx.kept).view(shape), None


def _causal_mask(start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """(stop - start, stop): 0 where query start + i may look at key j <= start + i, else -inf."""
    return torch.full((stop - start, stop), -math.inf, dtype=dtype).triu_(start + 1)
