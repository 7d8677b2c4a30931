"""The metric by which runs are compared: a column of loss.csv with its name, unit and direction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

NATS = "nats per token"


@dataclass(frozen=True)
class Measure:
    """A metric; the defaults describe what our trainer reports. unit: "" if unknown."""

    column: str = "val_loss"
    name: str = "held-out NLL"
    unit: str = NATS
    higher_is_better: bool = False

    @property
    def label(self) -> str:
        """The axis label: `held-out NLL (nats per token)`, `accuracy`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def short_name(self) -> str:
        """The header of a table column: `NLL`, `accuracy`."""
        return "NLL" if self.name == NLL.name else self.name

    @property
    def title(self) -> str:
        """The name, capitalized for the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def short_unit(self) -> str:
        """The unit of a difference, after a space: ` nats`; "" if unknown."""
        unit = "nats" if self.unit == NATS else self.unit
        return f" {unit}" if unit else ""

    @property
    def is_nll(self) -> bool:
        """True if exp() of a value is a perplexity."""
        return self.unit == NATS

    @property
    def is_loss(self) -> bool:
        """True for the loss columns; other columns have no training counterpart to plot."""
        return self.column in ("loss", "val_loss")

    @property
    def key(self) -> str:
        """The column name in CSV files: `val_nll`, `accuracy`."""
        words = re.sub(r"\W+", "_", self.name.lower(), flags=re.ASCII).strip("_")
        return "val_nll" if self.is_nll else words or "value"

    def is_better(self, difference: float) -> bool:
        """True if a value larger by `difference` is better."""
        return difference > 0 if self.higher_is_better else difference < 0

    @property
    def better(self) -> str:
        return "higher" if self.higher_is_better else "lower"

    @property
    def better_side(self) -> str:
        """The direction of better values on an x axis."""
        return "right of 0 is better" if self.higher_is_better else "left of 0 is better"

    def sides(self, better: str, worse: str) -> tuple[str, str]:
        """Return the two words in the order of an x axis."""
        return (worse, better) if self.higher_is_better else (better, worse)

    def on_training(self) -> Measure:
        """Return the measure for runs without a held-out loss: the training loss, under the user's name for it."""
        name = "training loss" if self.name in (NLL.name, COMMAND.name) else self.name
        return replace(self, column="loss", name=name)

    def is_of(self, summary: Mapping[str, Any]) -> bool:
        """True if the final value in a summary.json comes from this column, or stands in for a missing held-out loss.

        False for a run made before the study was switched to a different column.
        """
        found = str(summary.get("measure", NLL.column))
        return found == self.column or (found == "loss" and self.column == NLL.column)


NLL = Measure()  # of our trainer
COMMAND = Measure(name="held-out loss", unit="")  # of a command, by default
