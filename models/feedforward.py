"""Position-wise feed-forward layers with one matrix in and one out; the gated ones are in models.gated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models import custom
from ablatrix.models.config import GATED, GPTConfig
from ablatrix.models.dropout import Dropout
from ablatrix.models.gated import GatedFeedForward
from ablatrix.models.layers import Linear


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu2": relu2}


class FeedForward(nn.Module):
    """W2 f(W1 x), hidden 4C. (..., C) -> (..., C)"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd
        self.activation = ACTIVATIONS[config.feedforward]
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))

    def extra_repr(self) -> str:
        return self.activation.__name__


def build_feedforward(config: GPTConfig) -> nn.Module:
    """The feed-forward layer that `config` asks for, (B, T, C) -> (B, T, C)."""
    if "feedforward" in config.own_parts:
        return custom.build("feedforward", config)
    return GatedFeedForward(config) if config.feedforward in GATED else FeedForward(config)
