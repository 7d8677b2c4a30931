"""Rows of loss.csv from numbers as they come in: merged by step, cut back where a restarted command begins again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ablatrix.orchestrator.job import number_formats
from ablatrix.orchestrator.study.command import CLOCK, EPOCH, MILLISECONDS
from ablatrix.trainer.rundir import loss_csv


class Series:
    """The rows of one run by step. compare: the column that the study compares, where the experiment names one."""

    def __init__(self, compare: str | None = None) -> None:
        self.compare = compare
        self.columns = (*loss_csv.COLUMNS, *([compare] if compare and compare not in loss_csv.COLUMNS else []))
        self.rows: dict[int, dict[str, float]] = {}
        self.last = -1  # the newest step
        self.bad = 0  # values that were no numbers
        self.changed = False
        self.seconds = 0.0  # of training before this life of the command
        self._restarted = False
        self.resets = 0  # times that the step count restarted without an epoch being reported
        self.replaced = False  # a new life of the command has taken the place of all earlier rows
        self.repeated: set[int] = set()  # steps with two losses in one life of the command
        self._epochs: dict[int, int] = {}  # epoch -> what its steps are behind the run's
        self._epoch: int | None = None
        self._raw, self._gap, self._offset = -1, 1, 0  # newest step as reported, distance of two, what is added to it

    def restart(self) -> None:
        """A new life of the command begins: its first step is where the earlier rows end."""
        self._restarted = bool(self.rows)
        self._epoch, self._raw, self._offset = None, -1, 0

    def mark(self) -> dict[str, Any]:
        """Where the epochs begin, for the next life of the command."""
        return {"epochs": list(self._epochs.items())} if any(self._epochs.values()) else {}

    def go_on(self, mark: Mapping[str, Any]) -> None:
        """Take up what `mark` gave; anything else is left alone."""
        found = mark.get("epochs")
        pairs = [pair for pair in found if isinstance(pair, list)] if isinstance(found, list) else []
        self._epochs = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and all(type(n) is int for n in pair)}

    def _count_on(self, step: int, epoch: float | None) -> int:
        """Return the step of the run for a reported one, whose count may restart with each epoch."""
        if epoch is not None and epoch.is_integer() and epoch != self._epoch:
            number = int(epoch)
            if number not in self._epochs:
                resumed = self._restarted and bool(self._epochs) and number > max(self._epochs)
                again = resumed or (step <= self._raw and self._epoch is not None)
                self._epochs[number] = self.last + self._gap - step if again else self._offset
            self._epoch, self._offset = number, self._epochs[number]
        if step > self._raw >= 0:
            self._gap = step - self._raw
        self._raw = step
        return step + self._offset

    def add(self, found: Mapping[str, object], clock: float | None = None) -> None:
        """Merge what was read about a step; of two values of one cell the later counts.

        clock: seconds of this life of the command, for the column `seconds` where the source says none. A line without
        a step, or with one that is no whole number, is left out and counted in `bad`.
        """
        step = _step(found.get("iter"))
        if step is None:
            self.bad += 1
            return
        values = self._values(found)
        if not values:
            return
        step = self._count_on(step, number_formats.read(found.get(EPOCH)))
        began_again = step + 1 < self.last and step <= min(self.rows, default=0) and not self._restarted
        self.resets += began_again and "loss" in values and "loss" in self.rows.get(step, {})
        if self._restarted:
            kept = {at: row for at, row in self.rows.items() if at < step}
            self.replaced = len(self.rows) > 1 and not kept
            self.rows = kept
            self.seconds = max((row.get("seconds", 0.0) for _, row in self.complete()), default=0.0)
            self.last, self._restarted = step, False
        self.last = max(self.last, step)
        row = self.rows.setdefault(step, {})
        if "loss" in values and row.get("loss", values["loss"]) != values["loss"]:
            self.repeated.add(step)
        since = number_formats.read(found.get(CLOCK, clock))
        if since is not None and math.isfinite(since):
            row.setdefault(CLOCK, round(self.seconds + since, 6))
        row.update(values)
        self.changed = True

    def _values(self, found: Mapping[str, object]) -> dict[str, float]:
        values = {}
        for name, told in found.items():
            if name in ("iter", EPOCH, CLOCK) or told is None or told == "":
                continue
            value = number_formats.read(told, whole=name == "tokens")
            if value is None:
                self.bad += 1
                continue
            if name == MILLISECONDS:
                name, value = "dt", value / 1000
            values[name] = value
        return values

    def ordered(self) -> list[tuple[int, dict[str, float]]]:
        """(step, values) in order."""
        return sorted(self.rows.items())

    def complete(self, tokens_per_step: float | None = None) -> list[tuple[int, dict[str, float]]]:
        """The rows in order, with what follows: tokens; seconds from dt, or else from our clock; dt from seconds."""
        rows = [(step, dict(row)) for step, row in self.ordered()]
        # the trainer's own, that is: those of an earlier attempt were perhaps read off our clock
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

    def text(self, tokens_per_step: float | None = None) -> str:
        """loss.csv's text."""
        lines = [",".join(self.columns)]
        for step, row in self.complete(tokens_per_step):
            lines.append(",".join([str(step), *(_cell(row.get(name)) for name in self.columns[1:])]))
        return "\n".join(lines) + "\n"

    def load(self, text: str) -> None:
        """The rows of a loss.csv that an earlier attempt has left."""
        for cells in loss_csv.parse_columns(text, self.columns):
            row = {}
            for name, cell in zip(self.columns[1:], cells[1:], strict=True):
                value = loss_csv.parse_number(cell)
                if value is not None:
                    row[name] = value
            self.rows[int(cells[0])] = row
        self.last = max(self.rows, default=-1)

    def headline(self) -> tuple[str, float, int] | None:
        """(column, value, step) of what the run is compared by; None where it has no value.

        The last value of the compared column, by default of `val_loss`, else the mean of `loss` over the last tenth of
        the steps: the training loss of one batch is mostly noise.
        """
        column = self.compare or "val_loss"
        found = self._values_of(column)
        if found and column != "loss":
            return column, found[-1][1], found[-1][0]
        train = [] if self.compare and column != "loss" else self._values_of("loss")
        if not train:
            return None
        late = [loss for step, loss in train if step > 0.9 * train[-1][0]] or [train[-1][1]]
        return "loss", sum(late) / len(late), train[-1][0]

    def _values_of(self, column: str) -> list[tuple[int, float]]:
        return [(step, row[column]) for step, row in self.ordered() if column in row]

    def first_loss(self) -> float | None:
        """The first training loss, else the first held-out one."""
        for name in ("loss", "val_loss"):
            for _, row in self.ordered():
                if name in row:
                    return row[name]
        return None

    def final_loss(self) -> float | None:
        """The last training loss."""
        return next((row["loss"] for _, row in reversed(self.ordered()) if "loss" in row), None)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return repr(value)


def _step(told: object) -> int | None:
    """A step that is a whole number, written as 10 or 10.0."""
    value = number_formats.read(told, whole=True)
    return int(value) if value is not None and math.isfinite(value) and 0 <= value == int(value) else None
