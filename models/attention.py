"""Causal multi-head self-attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig
from models.positions import Rotary


class CausalSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(hs)) v over the positions up to each one's own (Vaswani et al. 2017, eq. 1).

    q, k and v come from one product; with `rope`, q and k are rotated. (B, T, C) -> (B, T, C)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd and config.n_head and config.block_size
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.rotary = Rotary(config.n_embd // config.n_head, config.block_size) if config.rope else None

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        dropout = self.attn_pdrop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))
