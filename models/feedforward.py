"""Position-wise feed-forward layers: plain (GELU, squared ReLU) and gated (SwiGLU, GEGLU, ReGLU)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models import custom
from ablatrix.models.compiled_gelu import gelu
from ablatrix.models.config import GATED, ResolvedGPTConfig, gated_hidden
from ablatrix.models.layers import Dropout, Linear


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return F.relu(x).square()


Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu": gelu, "relu2": relu2}
GATES: dict[str, Activation] = {"swiglu": F.silu, "geglu": gelu, "reglu": F.relu}


class FeedForward(nn.Module):
    """W2 f(W1 x) with hidden width 4C. (..., C) -> (..., C)"""

    def __init__(self, config: ResolvedGPTConfig) -> None:
        super().__init__()
        self.name = config.feedforward
        self.activation = ACTIVATIONS[self.name]
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))

    def extra_repr(self) -> str:
        return self.name


class GatedFeedForward(nn.Module):
    """W2 (f(W x) * V x) (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6), with W and V fused.

    The hidden width H matches the parameter count of the plain layer (`models.config.gated_hidden`).
    (..., C) -> (..., C)
    """

    def __init__(self, config: ResolvedGPTConfig) -> None:
        super().__init__()
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


def build_feedforward(config: ResolvedGPTConfig) -> nn.Module:
    """Return the feed-forward layer of a configuration, (B, T, C) -> (B, T, C)."""
    if "feedforward" in config.custom_components:
        return custom.build("feedforward", config)
    return GatedFeedForward(config) if config.feedforward in GATED else FeedForward(config)
