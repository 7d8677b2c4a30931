"""Cross-entropy of the output head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE = -1  # target of a position that is not scored


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Negative log-likelihood of `targets` under softmax(x weight^T), nats.

    x (N, C), weight (V, C), targets (N,) with IGNORE where nothing is scored; reduction `mean` (per scored token) or
    `sum`. Returns a float32 scalar.
    """
    logits = F.linear(x, weight)  # (N, V)
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction=reduction)
