"""Position-wise feed-forward layers: GELU as in GPT-2, SwiGLU as its ablation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig, swiglu_hidden
from models.dropout import Dropout
from models.layers import Linear


class GELUFeedForward(nn.Module):
    """W2 gelu(W1 x), hidden 4C, with GPT-2's tanh approximation (Hendrycks & Gimpel 2016). (..., C) -> (..., C)"""

    def __init__(self, n_embd: int, pdrop: float) -> None:
        super().__init__()
        self.c_fc = Linear(n_embd, 4 * n_embd)
        self.c_proj = Linear(4 * n_embd, n_embd)
        self.dropout = Dropout(pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return self.dropout(self.c_proj(x))


class SwiGLUFeedForward(nn.Module):
    """W2 (silu(W x) * V x) (Shazeer 2020, eq. 6), W and V as one product. (..., C) -> (..., C)

    The hidden width H keeps the parameter count of the GELU layer (`models.config.swiglu_hidden`).
    """

    def __init__(self, n_embd: int, pdrop: float) -> None:
        super().__init__()
        hidden = swiglu_hidden(n_embd)
        self.c_fc = Linear(n_embd, 2 * hidden)
        self.c_proj = Linear(hidden, n_embd)
        self.dropout = Dropout(pdrop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.c_fc(x).chunk(2, dim=-1)  # (B, T, H) each
        return self.dropout(self.c_proj(F.silu(gate) * value))


def build_feedforward(config: GPTConfig) -> nn.Module:
    """The feed-forward layer that `config` asks for."""
    assert config.n_embd
    layer = SwiGLUFeedForward if config.swiglu else GELUFeedForward
    return layer(config.n_embd, config.resid_pdrop)
