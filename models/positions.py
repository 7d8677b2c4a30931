"""Positions that are added to the token embeddings. Those that act on attention: models.rotary, models.alibi."""

from __future__ import annotations

from torch import Tensor, nn

from ablatrix.models import custom
from ablatrix.models.config import GPTConfig
from ablatrix.models.layers import Embedding
from ablatrix.models.sinusoidal import Sinusoidal


class LearnedPositions(Embedding):
    """A trained vector for each position up to block_size, as in GPT-2. (B, T, C) -> (B, T, C), T <= block_size"""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


def build_positions(config: GPTConfig) -> nn.Module | None:
    """What adds positions to embeddings (B, T, C); None where attention alone tells them apart.

    `none` has nothing anywhere: the causal mask is all that orders the tokens (Haviv et al. 2022).
    """
    assert config.block_size and config.n_embd
    if config.positions == "learned":
        return LearnedPositions(config.block_size, config.n_embd)
    if config.positions == "sinusoidal":
        return Sinusoidal(config.n_embd, config.block_size)
    if "positions" in config.own_parts:
        return custom.build("positions", config)
    return None
