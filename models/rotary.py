"""Rotary positions (Su et al. 2021, "RoFormer")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10000.0


class Rotary(nn.Module):
    """Turns the pair (x_i, x_{i + hs/2}) of a head at position t by the angle t * BASE^(-2i/hs).

    A rotation: norms stay, and q . k depends on positions through their distance only. The tables are not parameters
    and not part of a state dict; beyond `block_size` positions they are computed when needed.
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
        """Cosines and sines (T, hs) of the first positions, the sine's first half negated: a turn is then two products
        and a roll."""
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        # float64: at t = 1000 a float32 angle is already wrong in the fifth digit
        i = torch.arange(head_size // 2, device=where, dtype=torch.float64)
        t = torch.arange(length, device=where, dtype=torch.float64)
        angle = torch.outer(t, BASE ** (-2 * i / head_size))  # (T, hs/2)
        cos, sin = torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat((-angle.sin(), angle.sin()), dim=-1)
        return cos.to(device, torch.float32), sin.to(device, torch.float32)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(..., T, hs) -> (..., T, hs); row j stands at position start + j."""
        length, head_size = x.shape[-2:]
        cos, sin = self.cos, self.sin
        if start + length > len(cos):
            cos, sin = self.rows(start + length, head_size, x.device)
        cos, sin = cos[start : start + length], sin[start : start + length]
        return (x * cos + x.roll(head_size // 2, dims=-1) * sin).type_as(x)
