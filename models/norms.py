"""Normalization layers: LayerNorm as in GPT-2 (Ba et al. 2016), and RMSNorm or no norm as ablations of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ablatrix.models import custom

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

EPS = 1e-5


class RMSNorm(nn.Module):
    """Root mean square norm without bias: x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, eq. 4).

    (..., C) -> (..., C)
    """

    def __init__(self, n_embd: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        # squares in bfloat16 lose too much precision: the mean is always taken in float32
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def build_norm(config: ResolvedGPTConfig) -> nn.Module:
    """Return the norm that a configuration selects, (B, T, C) -> (B, T, C)."""
    if "norm" in config.custom_components:
        return custom.build("norm", config)
    if config.norm == "none":
        return nn.Identity()
    return RMSNorm(config.n_embd) if config.norm == "rmsnorm" else nn.LayerNorm(config.n_embd, EPS, bias=config.bias)
