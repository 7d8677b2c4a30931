"""Positions: learned and sinusoidal ones are added to the token embeddings; rotary and ALiBi act in attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ablatrix.models import custom
from ablatrix.models.layers import Embedding

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

BASE = 10000.0  # frequency base of rotary and sinusoidal positions
# The paper scales token embeddings to size 1 before adding the sinusoids. Here embeddings start at GPT-2's 0.02, and
# the sinusoids are scaled instead: the ratio is the paper's, and the residual stream matches that of other positions.
SINUSOIDAL_SCALE = 0.02


class LearnedPositions(Embedding):
    """A trained vector for each position up to block_size, as in GPT-2. (B, T, C) -> (B, T, C), T <= block_size

    places (B, T): the positions, if different from 0 .. T - 1.
    """

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        return x + (self.weight[: x.shape[1]] if places is None else super().forward(places))


class Sinusoidal(nn.Module):
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5), scaled: PE(t, 2i) = sin(t / 10000^(2i/C)),
    PE(t, 2i+1) = cos(t / 10000^(2i/C)). (B, T, C) -> (B, T, C); places as in LearnedPositions.

    The table is neither a parameter nor in the state dict; rows beyond `block_size` are computed when needed.
    """

    table: Tensor

    def __init__(self, n_embd: int, block_size: int) -> None:
        super().__init__()
        self.n_embd = n_embd
        self.register_buffer("table", self.rows(block_size, torch.get_default_device()), persistent=False)

    def rows(self, length: int, device: torch.device) -> Tensor:
        """Return SINUSOIDAL_SCALE * PE for the first `length` positions, (T, C)."""
        angle = _angles(length, self.n_embd, device)  # (T, C/2)
        pairs = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (T, C or C + 1)
        return (SINUSOIDAL_SCALE * pairs[:, : self.n_embd]).to(device, torch.float32)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        table = self.table[:length] if length <= len(self.table) else self.rows(length, x.device)
        return x + (table if places is None else table[places])


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, "RoFormer"): at position t, rotate each pair (x_i, x_{i + hs/2}) of a head by
    the angle t * 10000^(-2i/hs).

    Rotations preserve norms, and q . k depends on positions only through their distance. The tables are neither
    parameters nor in the state dict; rows beyond `block_size` are computed when needed.
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
        """Return cosines and sines (T, hs) for the first positions, with the sines' first half negated: a rotation is
        then two products and a roll."""
        angle = _angles(length, head_size, device)  # (T, hs/2)
        cos, sin = torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat((-angle.sin(), angle.sin()), dim=-1)
        return cos.to(device, torch.float32), sin.to(device, torch.float32)  # (T, hs) each

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate x (..., T, hs); row j is at position start + j."""
        length, head_size = x.shape[-2:]
        cos, sin = self.cos, self.sin
        if start + length > len(cos):
            cos, sin = self.rows(start + length, head_size, x.device)
        cos, sin = cos[start : start + length], sin[start : start + length]
        return (x * cos + x.roll(head_size // 2, dims=-1) * sin).type_as(x)


def alibi_slopes(n_head: int) -> list[float]:
    """Return the slope of each head: 2^(-8/n), 2^(-16/n), ... if n is a power of two.

    For other n, as in the paper's published code: the slopes for the largest power of two below n, then every second
    slope for the next power of two.
    """
    n = 1 << int(math.log2(n_head))
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    between = [2 ** (-8 * (h + 1) / (2 * n)) for h in range(0, 2 * n, 2)]
    return slopes + between[: n_head - n]


class ALiBi(nn.Module):
    """Attention with linear biases (Press et al. 2021): (key - query) * slope is added to each head's scores.

    Holds the slopes (nh,). trainable: they are parameters that start at the paper's values; otherwise they are a
    buffer outside the state dict.
    """

    slopes: Tensor

    def __init__(self, n_head: int, trainable: bool) -> None:
        super().__init__()
        slopes = torch.tensor(alibi_slopes(n_head))
        if trainable:
            self.slopes = nn.Parameter(slopes)
        else:
            self.register_buffer("slopes", slopes, persistent=False)

    def initialize(self, _: torch.Generator) -> None:
        self.slopes.copy_(torch.tensor(alibi_slopes(len(self.slopes))))


def _angles(length: int, size: int, device: torch.device) -> Tensor:
    """Return t / 10000^(2i/size) for each position t and dimension pair i, (length, size/2), size/2 rounded up.

    Computed in float64, because a float32 angle at t = 1000 is already wrong in the fifth digit; on the CPU for mps,
    which lacks float64.
    """
    where = torch.device("cpu") if device.type == "mps" else device
    t = torch.arange(length, device=where, dtype=torch.float64)
    i = torch.arange((size + 1) // 2, device=where, dtype=torch.float64)
    return torch.outer(t, BASE ** (-2 * i / size))


def build_positions(config: ResolvedGPTConfig) -> nn.Module | None:
    """Return the module that adds positions to embeddings (B, T, C); None if only attention uses positions.

    With `none`, only the causal mask orders the tokens (Haviv et al. 2022).
    """
    if config.positions == "learned":
        return LearnedPositions(config.block_size, config.n_embd)
    if config.positions == "sinusoidal":
        return Sinusoidal(config.n_embd, config.block_size)
    if "positions" in config.custom_components:
        return custom.build("positions", config)
    return None
