"""Rotary positions (Su et al. 2021, "RoFormer")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10000.0


class Rotary(nn.Module):
    """Turns the pair (x_i, x_{i + hs/2}) of a head at position t by the angle t * BASE^(-2i/hs).

    A rotation: norms stay, and q . k depends on positions through their distance only. The tables are not parameters
    and not part of a state dict.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        self.register_buffer("cos", torch.empty(block_size, head_size), persistent=False)
        self.register_buffer("sin", torch.empty(block_size, head_size), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the tables (T, hs), the sine's first half negated so that a turn is two products and a roll."""
        length, head_size = self.cos.shape
        # float64: at t = 1000 a float32 angle is already wrong in the fifth digit
        i = torch.arange(head_size // 2, device=self.cos.device, dtype=torch.float64)
        t = torch.arange(length, device=self.cos.device, dtype=torch.float64)
        angle = torch.outer(t, BASE ** (-2 * i / head_size))  # (T, hs/2)
        self.cos.copy_(torch.cat((angle.cos(), angle.cos()), dim=-1))
        self.sin.copy_(torch.cat((-angle.sin(), angle.sin()), dim=-1))

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(..., T, hs) -> (..., T, hs); row j stands at position start + j."""
        length, head_size = x.shape[-2:]
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        return (x * cos + x.roll(head_size // 2, dims=-1) * sin).type_as(x)
