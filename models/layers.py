"""torch's layers without their own initialisation: the model draws every weight itself, from (seed, name).

On a meta device torch's initialisation would also import torch._dynamo, which takes as long as the rest of the start.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """nn.Linear whose weights are undefined until they are set."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """nn.Embedding whose weights are undefined until they are set."""

    def reset_parameters(self) -> None:
        pass
