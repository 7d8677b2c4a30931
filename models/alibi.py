"""Attention with linear biases, ALiBi (Press et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def alibi_slopes(n_head: int) -> list[float]:
    """Slopes of the heads: 2^(-8/n), 2^(-16/n), ... where n is a power of two.

    For other numbers of heads, as in the paper's published code: those of the largest power of two below it, then every
    second one of the next power of two.
    """
    n = 1 << int(math.log2(n_head))
    slopes = [2 ** (-8 * (h + 1) / n) for h in range(n)]
    between = [2 ** (-8 * (h + 1) / (2 * n)) for h in range(0, 2 * n, 2)]
    return slopes + between[: n_head - n]


class ALiBi(nn.Module):
    """The slopes (nh,) of (key - query) * slope, which is added to attention scores instead of any embedding.

    trainable: they are parameters, starting from the fixed ones; else a buffer outside of the state dict.
    """

    slopes: Tensor

    def __init__(self, n_head: int, trainable: bool) -> None:
        super().__init__()
        slopes = torch.tensor(alibi_slopes(n_head))
        if trainable:
            self.slopes = nn.Parameter(slopes)
        else:
            self.register_buffer("slopes", slopes, persistent=False)

    def initialise(self, _: torch.Generator) -> None:
        self.slopes.copy_(torch.tensor(alibi_slopes(len(self.slopes))))


def distances(start: int, stop: int, device: torch.device) -> Tensor:
    """key - query of queries start .. stop - 1 and keys 0 .. stop - 1, (stop - start, stop) float32."""
    positions = torch.arange(stop, device=device, dtype=torch.float32)
    return positions - positions[start:, None]
