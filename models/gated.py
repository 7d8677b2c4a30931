"""Gated linear units as feed-forward layers (Shazeer 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models.config import GPTConfig, gated_hidden
from ablatrix.models.dropout import Dropout
from ablatrix.models.layers import Linear

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),  # as in GPT-2's own layer
    "reglu": F.relu,
}


class GatedFeedForward(nn.Module):
    """W2 (f(W x) * V x) (Shazeer 2020, eq. 6), W and V as one product; f: silu, gelu or relu. (..., C) -> (..., C)

    The hidden width H keeps the parameter count of the plain layer (`models.config.gated_hidden`).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd
        self.name = config.feedforward
        self.gate = GATES[self.name]
        hidden = gated_hidden(config.n_embd, config.bias)
        self.c_fc = Linear(config.n_embd, 2 * hidden, bias=config.bias)
        self.c_proj = Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.c_fc(x).chunk(2, dim=-1)  # (B, T, H) each
        return self.dropout(self.c_proj(self.gate(gate) * value))

    def extra_repr(self) -> str:
        return self.name
