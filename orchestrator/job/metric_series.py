"""Rows of loss.csv built from metrics as they arrive: merged by step, cut back where a restarted command begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ablatrix.orchestrator.job import number_formats
from ablatrix.orchestrator.study.command import CLOCK, EPOCH, MILLISECONDS
from ablatrix.trainer.rundir import loss_csv

Row = dict[str, float]


class MetricSeries:
    """The rows of one run by step. compare: the column that the study compares, if the experiment specifies one."""

    def __init__(self, compare: str | None = None) -> None:
        self.compare = compare
        self.columns = (*loss_csv.COLUMNS, *([compare] if compare and compare not in loss_csv.COLUMNS else []))
        self.rows: dict[int, Row] = {}
        self.last = -1  # the newest step
        self.changed = False
        self.seconds = 0.0  # of training in earlier attempts
        self.bad = 0  # values in this attempt that were not numbers
        self.resets = 0  # times in this attempt that the step count restarted without a reported epoch
        self.repeated: set[int] = set()  # steps in this attempt with two losses
        self.replaced = False  # True if this attempt has replaced all earlier rows
        self._restarted = False
        self._steps = _StepCounter()

    def restart(self) -> None:
        """Begin another attempt of the command, whose first step replaces the earlier rows from there on."""
        self._restarted = bool(self.rows)
        self._steps.restart()
        self.bad = self.resets = 0
        self.repeated.clear()

    def position(self) -> dict[str, Any]:
        """Return the step offsets of the epochs, for the next attempt."""
        return self._steps.position()

    def resume(self, position: Mapping[str, Any]) -> None:
        """Continue from what `position` returned; {} is the beginning."""
        self._steps.resume(position)

    def add(self, found: Mapping[str, object], clock: float | None = None) -> None:
        """Merge the values of one step; a later value for the same column replaces the earlier one.

        clock: seconds into this attempt, for the column `seconds` if the source has none. Values without a step, or
        whose step is not a whole number, are counted in `bad`.
        """
        step = _parse_step(found.get("iter"))
        if step is None:
            self.bad += 1
            return
        values = self._parse_values(found)
        if not values:
            return
        step = self._steps.count(step, number_formats.parse(found.get(EPOCH)), self.last, self._restarted)
        began_again = step + 1 < self.last and step <= min(self.rows, default=0) and not self._restarted
        self.resets += began_again and "loss" in values and "loss" in self.rows.get(step, {})
        if self._restarted:
            self._cut_back(step)
        self.last = max(self.last, step)
        row = self.rows.setdefault(step, {})
        if "loss" in values and row.get("loss", values["loss"]) != values["loss"]:
            self.repeated.add(step)
        since = number_formats.parse(found.get(CLOCK, clock))
        if since is not None and math.isfinite(since):
            row.setdefault(CLOCK, round(self.seconds + since, 6))
        row.update(values)
        self.changed = True

    def _parse_values(self, found: Mapping[str, object]) -> Row:
        values = {}
        for name, text in found.items():
            if name in ("iter", EPOCH, CLOCK) or text is None or text == "":
                continue
            value = number_formats.parse(text, whole=name == "tokens")
            if value is None:
                self.bad += 1
            elif name == MILLISECONDS:
                values["dt"] = value / 1000
            else:
                values[name] = value
        return values

    def _cut_back(self, step: int) -> None:
        """Drop the rows from `step`, the first of a restarted command, onward."""
        kept = {at: row for at, row in self.rows.items() if at < step}
        self.replaced = len(self.rows) > 1 and not kept
        self.rows = kept
        self.seconds = max((row.get("seconds", 0.0) for _, row in self.complete()), default=0.0)
        self.last, self._restarted = step, False

    def ordered(self) -> list[tuple[int, Row]]:
        """Return (step, values) pairs in order of steps."""
        return sorted(self.rows.items())

    def complete(self, tokens_per_step: float | None = None) -> list[tuple[int, Row]]:
        """Return the rows in order, with derived values: tokens; seconds from dt, else from our clock; dt from seconds.

        tokens_per_step: used for rows without tokens.
        """
        rows = [(step, dict(row)) for step, row in self.ordered()]
        # the command's own dt; in a row with seconds but no clock, an earlier attempt derived it
        dt = next((row["dt"] for _, row in rows if "dt" in row and ("seconds" not in row or CLOCK in row)), None)
        before: tuple[int, float] | None = None
        for step, row in rows:
            clock = row.pop(CLOCK, None)
            if tokens_per_step:
                row.setdefault("tokens", step * tokens_per_step)
            if math.isfinite(row.get("tokens", math.nan)):
                row["tokens"] = round(row["tokens"])
            if "seconds" not in row and dt is not None:
                dt = row.get("dt", dt)
                row["seconds"] = round((before[1] if before else 0.0) + dt * (step - (before[0] if before else 0)), 6)
            elif clock is not None:
                row.setdefault("seconds", clock)
            if "seconds" in row:
                if before and "dt" not in row and row["seconds"] > before[1]:
                    row["dt"] = (row["seconds"] - before[1]) / (step - before[0])
                before = step, row["seconds"]
        return rows

    def to_csv(self, tokens_per_step: float | None = None) -> str:
        """Return the text of loss.csv."""
        lines = [",".join(self.columns)]
        for step, row in self.complete(tokens_per_step):
            cells = (repr(row[name]) if name in row else "" for name in self.columns[1:])
            lines.append(",".join([str(step), *cells]))
        return "\n".join(lines) + "\n"

    def load(self, text: str) -> None:
        """Load the rows of an earlier attempt's loss.csv."""
        for step, *cells in loss_csv.parse_columns(text, self.columns):
            values = {name: loss_csv.parse_number(cell) for name, cell in zip(self.columns[1:], cells, strict=True)}
            self.rows[int(step)] = {name: value for name, value in values.items() if value is not None}
        self.last = max(self.rows, default=-1)

    def headline(self) -> tuple[str, float, int] | None:
        """Return (column, value, step) by which the run is compared; None if it has no value.

        The value is the last of the compared column, by default `val_loss`; else the mean of `loss` over the last
        tenth of the steps, because the training loss of a single batch is mostly noise.
        """
        column = self.compare or "val_loss"
        found = self._column(column)
        if found and column != "loss":
            return column, found[-1][1], found[-1][0]
        train = [] if self.compare and column != "loss" else self._column("loss")
        if not train:
            return None
        late = [loss for step, loss in train if step > 0.9 * train[-1][0]] or [train[-1][1]]
        return "loss", sum(late) / len(late), train[-1][0]

    def first_loss(self) -> float | None:
        """Return the first training loss, else the first held-out loss."""
        losses = self._column("loss") or self._column("val_loss")
        return losses[0][1] if losses else None

    def final_loss(self) -> float | None:
        """Return the last training loss."""
        losses = self._column("loss")
        return losses[-1][1] if losses else None

    def _column(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.ordered() if name in row]


class _StepCounter:
    """Converts reported steps, whose count may restart with each epoch, into steps of the run."""

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}  # epoch -> offset added to its steps
        self._gap = 1  # between two reported steps
        self.restart()

    def restart(self) -> None:
        self._epoch: int | None = None
        self._reported, self._offset = -1, 0  # newest reported step, offset added to it

    def position(self) -> dict[str, Any]:
        return {"epochs": list(self._offsets.items())} if any(self._offsets.values()) else {}

    def resume(self, position: Mapping[str, Any]) -> None:
        self._offsets = dict(position.get("epochs", ()))

    def count(self, step: int, epoch: float | None, last: int, restarted: bool) -> int:
        """Return the run's step. last: the run's newest step. restarted: True for the first step of another attempt."""
        if epoch is not None and epoch.is_integer() and epoch != self._epoch:
            number = int(epoch)
            if number not in self._offsets:
                resumed = restarted and bool(self._offsets) and number > max(self._offsets)
                again = resumed or (step <= self._reported and self._epoch is not None)
                self._offsets[number] = last + self._gap - step if again else self._offset
            self._epoch, self._offset = number, self._offsets[number]
        if step > self._reported >= 0:
            self._gap = step - self._reported
        self._reported = step
        return step + self._offset


def _parse_step(text: object) -> int | None:
    """Return a step that is a whole number, written as 10 or 10.0."""
    value = number_formats.parse(text, whole=True)
    if value is None or not math.isfinite(value) or not 0 <= value < 10**loss_csv.STEP_DIGITS:
        return None
    return int(value) if value == int(value) else None
