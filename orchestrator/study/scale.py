"""The scale axis of an experiment: the sizes at which every cell is trained, each compared with its own baseline."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ablatrix.orchestrator.study.literals import text_of

FARTHEST = 10.0  # multiple of the largest compute beyond which nothing is predicted
SEPARATOR = "@"  # between a cell and its size in the name of a run


@dataclass(frozen=True)
class Size:
    """One size: its name and the settings (dotted key -> value) that define it; '' in a study without a scale."""

    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def cell(self, name: str) -> str:
        """Return the name of a cell at this size: `swiglu@gpt-nano`."""
        return f"{name}{SEPARATOR}{self.name}" if self.name else name


class Scale(BaseModel):
    """The sizes of a study. Every other key is a setting with a list of values, one per size, from small to large."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    tokens_per_parameter: float | None = Field(
        None, gt=0, description="training tokens per parameter of the baseline; sets trainer.max_iters at each size"
    )
    predict: float | None = Field(
        None,
        gt=1,
        le=FARTHEST,
        description="multiple of the largest compute at which effects are predicted, at most 10; default: one more "
        "step of the last ratio",
    )

    stop_if: Literal["hurts"] | None = Field(
        None, description="do not queue larger sizes of a cell that hurts at a smaller one; sizes then run one by one"
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The scaled settings: dotted key -> values."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _check_lengths(self) -> Scale:
        lists = {key: values for key, values in self.settings.items() if isinstance(values, list)}
        if len(lists) < len(self.settings):
            return self  # reported with its position by field_checks
        if not lists:
            raise ValueError("no setting given; write `scale: {model.model_type: [gpt-nano, gpt-micro, gpt-mini]}`")
        lengths = {key: len(values) for key, values in lists.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise ValueError(f"every setting needs one value per size, but {found}")
        if set(lengths.values()) == {1}:
            raise ValueError("only one size; give at least two, or three to see a trend")
        rows = [repr(row) for row in zip(*lists.values(), strict=True)]
        if len(set(rows)) < len(rows):
            raise ValueError("two sizes have the same settings; give each size once")
        return self

    def as_record(self) -> dict[str, Any]:
        """Return the record in study.json."""
        chosen = {"predict": self.predict, "stop_if": self.stop_if}
        return {"sizes": [size.name for size in self.sizes()], **{k: v for k, v in chosen.items() if v is not None}}

    def sizes(self) -> list[Size]:
        """Return the sizes, in order, named after the first settings that distinguish them."""
        rows = [dict(zip(self.settings, values, strict=True)) for values in zip(*self.settings.values(), strict=True)]
        labels = [[_label(key, value) for key, value in row.items()] for row in rows]
        for used in range(1, len(self.settings) + 1):
            names = ["-".join(row[:used]) for row in labels]
            if len({name.casefold() for name in names}) == len(names):
                break
        else:
            names = [f"size{number}" for number in range(1, len(rows) + 1)]
        return [Size(name, row) for name, row in zip(names, rows, strict=True)]


OWN_KEYS = tuple(Scale.model_fields)


def _label(key: str, value: Any) -> str:
    """Return the label of a value: `gpt-nano` for a string, `n_embd48` for any other value."""
    text = text_of(value) if isinstance(value, bool | int | float) else str(value)
    name = text if isinstance(value, str) else key.rpartition(".")[2] + text
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:40] or "size"
