"""Positions that are added to the token embeddings: learned and sinusoidal. Those of attention: models.attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ablatrix.models import custom
from ablatrix.models.layers import Embedding

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

SINUSOIDAL_BASE = 10000.0
# In the paper token embeddings are scaled to size 1 before the sinusoids are added. Here they start at GPT-2's 0.02,
# and the sinusoids are scaled instead: the proportion is the paper's, the residual stream that of other positions.
SINUSOIDAL_SCALE = 0.02


class LearnedPositions(Embedding):
    """A trained vector for each position up to block_size, as in GPT-2. (B, T, C) -> (B, T, C), T <= block_size

    places (B, T): the positions, if they are not 0 .. T - 1.
    """

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        return x + (self.weight[: x.shape[1]] if places is None else super().forward(places))


class Sinusoidal(nn.Module):
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5), scaled: PE(t, 2i) = sin(t / 10000^(2i/C)),
    PE(t, 2i+1) = cos(t / 10000^(2i/C)). (B, T, C) -> (B, T, C); places as in LearnedPositions.

    The table is no parameter and not part of a state dict; beyond `block_size` positions it is computed when needed.
    """

    table: Tensor

    def __init__(self, n_embd: int, block_size: int) -> None:
        super().__init__()
        self.n_embd = n_embd
        self.register_buffer("table", self.rows(block_size, torch.get_default_device()), persistent=False)

    def rows(self, length: int, device: torch.device) -> Tensor:
        """Return SINUSOIDAL_SCALE * PE of the first `length` positions, (T, C)."""
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        t = torch.arange(length, device=where, dtype=torch.float64)
        i = torch.arange((self.n_embd + 1) // 2, device=where, dtype=torch.float64)
        angle = torch.outer(t, SINUSOIDAL_BASE ** (-2 * i / self.n_embd))  # (T, C/2)
        pairs = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (T, C or C + 1)
        return (SINUSOIDAL_SCALE * pairs[:, : self.n_embd]).to(device, torch.float32)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        table = self.table[:length] if length <= len(self.table) else self.rows(length, x.device)
        return x + (table if places is None else table[places])


def build_positions(config: ResolvedGPTConfig) -> nn.Module | None:
    """Return the module that adds positions to embeddings (B, T, C); None where attention alone knows positions.

    `none` has nothing anywhere: only the causal mask orders the tokens (Haviv et al. 2022).
    """
    if config.positions == "learned":
        return LearnedPositions(config.block_size, config.n_embd)
    if config.positions == "sinusoidal":
        return Sinusoidal(config.n_embd, config.block_size)
    if "positions" in config.custom_components:
        return custom.build("positions", config)
    return None
