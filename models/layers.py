"""torch's layers without their initialization, and a fast dropout for CPUs.

The model draws every weight itself, from (seed, name). On the meta device torch's initialization would also import
torch._dynamo, which takes as long as the rest of startup.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ablatrix.models import cpu_kernels


class Linear(nn.Linear):
    """nn.Linear with uninitialized weights."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding with uninitialized weights."""

    def reset_parameters(self) -> None:
        pass


class Dropout(nn.Module):
    """Zero each element with probability `pdrop` and scale the others by 1 / (1 - pdrop), in training only.

    Srivastava et al. 2014, "Dropout".
    """

    def __init__(self, pdrop: float) -> None:
        super().__init__()
        self.pdrop = pdrop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.pdrop == 0.0:
            return x
        return cpu_kernels.dropout(x, self.pdrop) if x.device.type == "cpu" else F.dropout(x, self.pdrop)

    def extra_repr(self) -> str:
        return f"pdrop={self.pdrop}"
