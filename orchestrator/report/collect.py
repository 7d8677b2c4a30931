"""A study's folder -> Study: every run of study.json with what its files say. Nothing is dropped, nothing is judged."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ablatrix.models.config import GPTConfig, count_parameters, flops_per_token
from ablatrix.orchestrator.report import curve_cache, divergence
from ablatrix.orchestrator.report.curve_cache import Curve
from ablatrix.orchestrator.store import study_dir as rundir
from ablatrix.orchestrator.study.metric import COMMAND, NLL, Measure, of_record
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir import loss_digest as loss_record
from ablatrix.trainer.rundir.files import read_bytes

ROWS_KEPT = 400  # rows of loss.csv are averaged in groups, so that at most this many remain
READ = ("iter", "tokens", "seconds", "loss", "lr", "grad_norm", "val_loss")

States = Mapping[str, str | tuple[str, str]]


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked for, what state it is in, and what its files say."""

    id: str
    cell: str
    seed: int
    features: tuple[str, ...]
    overrides: dict[str, Any]
    state: str
    reason: str
    config: dict[str, Any]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    curve: Curve
    altered: str = ""  # how loss.csv differs from what the run wrote
    study_measure: Measure = NLL

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @cached_property
    def value(self) -> float | None:
        """Final value of the study's measure, such as the held-out NLL in nats per token; None if none is finite."""
        return self.number(self._value_key) if self.has_measure else None

    @property
    def _value_key(self) -> str:
        return "final_value" if "final_value" in self.summary else "val_nll"

    @property
    def has_measure(self) -> bool:
        """False for a run that was made before the study was compared by another column."""
        wanted = self.study_measure.column
        return self.measure == wanted or (self.measure == "loss" and wanted == "val_loss")

    @cached_property
    def diverged(self) -> bool:
        """True if the run finished and the rule of `divergence` applies."""
        if not self.finished:
            return False
        if self.summary.get("diverged") or (self._value_key in self.summary and self.number(self._value_key) is None):
            return True
        return divergence.is_diverged(
            [(*self._training_ends, False), (*self._held_out_ends, self.study_measure.higher_is_better)]
        )

    @property
    def _training_ends(self) -> divergence.Ends:
        """First and last training loss."""
        if not np.isfinite(self.curve.column("loss")).any() and self.curve.rows:
            return None, None  # a command that reports none: its initial_loss is a held-out one
        last = self.value if self.measure == "loss" else self.number("final_loss")
        return self.number("initial_loss"), last

    @property
    def _held_out_ends(self) -> divergence.Ends:
        """First and last value of the measure, where there was more than one evaluation."""
        values = self.curve.evaluated("val_loss")
        return (float(values[0]), self.value) if len(values) > 1 and self.measure != "loss" else (None, None)

    @cached_property
    def evaluations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, seconds, value) of every evaluation of the measure, the one of summary.json last; each (E,)."""
        tokens, seconds, loss = (self.curve.evaluated(name) for name in ("tokens", "seconds", "val_loss"))
        end = [v for v in (self.number("tokens"), self.number("seconds"), self.value) if v is not None]
        if len(end) == 3:
            before = tokens < end[0]
            tokens, seconds, loss = (np.append(v[before], e) for v, e in zip((tokens, seconds, loss), end, strict=True))
        return tokens, np.maximum.accumulate(seconds) if len(seconds) else seconds, loss

    @cached_property
    def usable(self) -> bool:
        """Its final value takes part in means and intervals."""
        return self.finished and not self.diverged and self.value is not None and not self.wrong_overrides

    def number(self, name: str) -> float | None:
        """A finite number of summary.json, else None."""
        value = self.summary.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def measure(self) -> str:
        """The column its final value is of: `loss` (mean training loss) where a command reported no held-out loss."""
        return str(self.summary.get("measure", "val_loss"))

    @property
    def command(self) -> list[str]:
        """The words that a run of a command starts, placeholders not filled; [] for our trainer."""
        words = self.config.get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def skipped(self) -> dict[str, int]:
        """Documents of the corpus that were not used, by reason."""
        counts = self.summary.get("skipped_documents")
        found = counts.items() if isinstance(counts, dict) else []
        return {str(reason): int(n) for reason, n in found if isinstance(n, int)}

    def setting(self, key: str) -> Any:
        """A value of config.json by its dotted key, None where there is none."""
        if isinstance(self.config.get("settings"), dict):  # of a command
            return _walk(self.config["settings"], key)
        section, _, name = key.partition(".")
        found = self.config.get(section)
        return found.get(name) if isinstance(found, dict) else None

    @cached_property
    def parameters(self) -> int | None:
        value = self.number("parameters")
        return int(value) if value is not None else self._from_model(count_parameters)

    @cached_property
    def flops_per_token(self) -> int | None:
        value = self.number("flops_per_token")
        return int(value) if value is not None else self._from_model(flops_per_token)

    def _from_model(self, count: Any) -> int | None:
        try:
            return int(count(GPTConfig.model_validate(self.config.get("model", {}))))
        except (ValidationError, ValueError, TypeError):
            return None

    @cached_property
    def wrong_overrides(self) -> tuple[str, ...]:
        """Overrides that config.json does not hold: the feature never reached the trainer."""
        if not self.config:
            return ()
        return tuple(k for k, v in sorted(self.overrides.items()) if _checked(k, v) and not _same(self.setting(k), v))


def _walk(tree: Any, key: str) -> Any:
    """A value of nested settings by its dotted key."""
    if isinstance(tree, dict) and key not in tree:
        section, _, rest = key.partition(".")
        return _walk(tree.get(section), rest) if rest else None
    return tree[key] if isinstance(tree, dict) else None


def _checked(key: str, wanted: Any) -> bool:
    """Places are made absolute and a null is filled in when the configuration is resolved: they may differ."""
    return wanted is not None and not key.startswith("system.") and key != "data.file_path"


def _same(found: Any, wanted: Any) -> bool:
    number = isinstance(found, int | float) and isinstance(wanted, int | float)
    if number and not isinstance(found, bool) and not isinstance(wanted, bool):
        return math.isclose(found, wanted, rel_tol=1e-12)
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool(found == wanted)


@dataclass(frozen=True)
class Study:
    """A study as it stands on disk. digest: of everything that was read, states included."""

    name: str
    folder: Path
    file: str
    features: dict[str, dict[str, Any]]
    runs: tuple[RunRecord, ...]
    digest: str
    cells: dict[str, tuple[RunRecord, ...]] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)  # experiment_info: name, description, date, hypothesis
    measure: Measure = NLL  # what its runs are compared by


def read_study(study_dir: Path, states: States) -> Study:
    """Read every run of a study. Raises UserError where `study_dir` holds no usable study.json."""
    plan = rundir.read_plan(study_dir)
    known = curve_cache.load(study_dir / "report" / curve_cache.CURVES)
    column = of_record(plan.get("measure")).column
    with ThreadPoolExecutor(max_workers=4) as pool:
        files = list(pool.map(lambda run: _read_files(study_dir / run["id"], known, column), plan["runs"]))
    curve_cache.save(
        study_dir / "report" / curve_cache.CURVES, {f.curve_key: f.curve for f in files if f.curve.rows}, known
    )
    measure = _measure(plan, files)
    runs = tuple(_record(run, states, found, measure) for run, found in zip(plan["runs"], files, strict=True))
    cells: dict[str, list[RunRecord]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    said = [
        str(study_dir),
        json.dumps(plan, sort_keys=True),
        *(f"{r.id} {r.state} {r.reason}" for r in runs),
        *(f.digest for f in files),
    ]
    return Study(
        name=plan["name"],
        folder=study_dir,
        file=plan["file"],
        features={name: dict(settings or {}) for name, settings in plan["features"].items()},
        runs=runs,
        digest=hashlib.sha256("\n".join(said).encode()).hexdigest(),
        cells={name: tuple(group) for name, group in cells.items()},
        info={name: text for name, text in plan.get("info", {}).items() if text},
        measure=measure,
    )


def _measure(plan: Mapping[str, Any], files: Sequence[_Files]) -> Measure:
    """What the study compares; a study from before this was recorded compares losses."""
    if "measure" not in plan and any("command" in found.config for found in files):
        return COMMAND
    return of_record(plan.get("measure"))


def _record(run: dict[str, Any], states: States, files: _Files, measure: Measure) -> RunRecord:
    said = states.get(run["id"], "done" if files.summary else "planned")
    state, reason = (said, "") if isinstance(said, str) else (str(said[0]), str(said[1] or ""))
    return RunRecord(
        id=run["id"],
        cell=run["cell"],
        seed=run["seed"],
        features=tuple(run.get("features", ())),
        overrides=run.get("overrides", {}),
        state=state,
        reason=reason,
        config=files.config,
        summary=files.summary,
        provenance=files.provenance,
        curve=files.curve,
        altered=files.altered,
        study_measure=measure,
    )


@dataclass(frozen=True)
class _Files:
    config: dict[str, Any]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    curve: Curve
    curve_key: str
    loss_digest: str
    digest: str

    @property
    def altered(self) -> str:
        """How loss.csv differs from what the finished run wrote; '' if it does not."""
        if not self.summary:
            return ""
        last = self.curve.last_iter
        last = int(last) if math.isfinite(last) else 0
        return loss_record.explain_change(self.summary, self.loss_digest, self.curve.rows, last)


def _read_files(folder: Path, known: Mapping[str, Curve], column: str) -> _Files:
    """column: of loss.csv, whose values are the evaluations."""
    small = [_bytes(folder / name) for name in (run_files.CONFIG, run_files.SUMMARY, run_files.PROVENANCE)]
    loss = _bytes(folder / run_files.LOSS)
    loss_digest = hashlib.sha256(loss).hexdigest()
    curve_key = loss_digest if column == "val_loss" else f"{loss_digest} {column}"
    curve = known.get(curve_key)
    if curve is None:
        curve = reduce_rows(parse_rows(loss, column))
    digest = hashlib.sha256(
        b"\0".join([*(hashlib.sha256(s).digest() for s in small), loss_digest.encode()])
    ).hexdigest()
    config, summary, provenance = (_object(s) for s in small)
    summary = summary if "iters" in summary else {}  # else a command has left a file of that name
    return _Files(config, summary, provenance, curve, curve_key, loss_digest, digest)


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""


def _object(data: bytes) -> dict[str, Any]:
    value = run_files.parse_json(data.decode("utf-8", "replace"))
    return value if isinstance(value, dict) else {}


def parse_rows(data: bytes, column: str = "val_loss") -> dict[str, np.ndarray]:
    """Columns of a loss.csv as float64 (R,): nan where a cell is empty; an unterminated last line is no row.

    column: whose values stand in the place of `val_loss`, because the study compares them; `loss`: no column's.
    """
    data = data[: data.rfind(b"\n") + 1]
    header = data[: data.find(b"\n")].decode("utf-8", "replace").strip().split(",")
    if column != "val_loss":
        swapped = {"val_loss": "", column: "val_loss"} if column != "loss" else {"val_loss": ""}
        header = [swapped.get(name, name) for name in header]
        data = ",".join(header).encode() + data[data.find(b"\n") :]
    if tuple(header[:2]) != loss_csv.COLUMNS[:2]:
        return {name: np.empty(0) for name in READ}
    present = [name for name in READ if name in header]
    try:
        columns = _parse_quickly(data, len(header), present)
    except (ValueError, ArithmeticError):  # a spoiled row, or two trainers wrote at once: the slow reader puts it right
        columns = _parse_slowly(data.decode("utf-8", "replace"), header, present)
    rows = len(columns["iter"])
    return {name: columns.get(name, np.full(rows, np.nan)) for name in READ}


def _parse_quickly(data: bytes, width: int, present: list[str]) -> dict[str, np.ndarray]:
    """Columns of a file whose lines are as a trainer writes them. Raises ValueError or ArithmeticError for others."""
    body = data[data.find(b"\n") + 1 :]
    if body.translate(None, b"0123456789.,e+-naif\n") or b"\n+" in data or b"\n-" in data:
        raise ValueError("a cell that is no number")
    # pandas would fill up a torn line, and take a first column too many for names of the rows
    ends = np.flatnonzero(np.frombuffer(body, np.uint8) == ord("\n"))
    commas = np.cumsum(np.frombuffer(body, np.uint8) == ord(","))[ends]
    if np.any(np.diff(commas, prepend=0) != width - 1):
        raise ValueError("a line of another length")
    types = {name: np.int64 if name == "iter" else np.float64 for name in present}
    frame = pd.read_csv(io.BytesIO(data), usecols=present, dtype=types)
    if np.any(np.diff(frame["iter"].to_numpy()) <= 0):
        raise ValueError("a step twice")
    return {name: frame[name].to_numpy(np.float64) for name in present}


def _parse_slowly(text: str, header: list[str], present: list[str]) -> dict[str, np.ndarray]:
    rows = loss_csv.parse_rows(text)
    at = {name: header.index(name) for name in present}
    return {name: np.array([_float(row[i]) for row in rows], dtype=np.float64) for name, i in at.items()}


def _float(cell: str) -> float:
    value = loss_csv.parse_number(cell)
    return math.nan if value is None else value


def reduce_rows(columns: Mapping[str, np.ndarray]) -> Curve:
    """At most ROWS_KEPT means of consecutive rows, and the evaluations as they are.

    The group size is a power of two, so that runs of about the same length are grouped alike and stay comparable.
    """
    rows = len(columns["iter"])
    size = 1
    while rows > size * ROWS_KEPT:
        size *= 2
    train = np.stack([_group_means(columns[name], size) for name in curve_cache.TRAIN])
    evaluated = np.isfinite(columns["val_loss"])
    held_out = np.stack([columns[name][evaluated] for name in curve_cache.HELD_OUT])
    bad = int(np.count_nonzero(np.isinf(columns["loss"])))
    last = [float(columns[name][-1]) if rows else math.nan for name in ("iter", "tokens", "seconds")]
    return Curve(rows, bad, last[0], last[1], last[2], train, held_out)


def _group_means(values: np.ndarray, size: int) -> np.ndarray:
    """(R,) -> (ceil(R / size),): mean of the finite values of each group, nan where it has none."""
    finite = np.isfinite(values)
    padding = -len(values) % size
    groups = np.pad(np.where(finite, values, 0.0), (0, padding)).reshape(-1, size)
    counts = np.pad(finite, (0, padding)).reshape(-1, size).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return groups.sum(axis=1) / np.where(counts, counts, np.nan)
