"""Read a study's folder: every run of study.json with the content of its files."""

from __future__ import annotations

import hashlib
import marshal
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json

from ablatrix.models.config import GPTConfig, count_parameters, flops_per_token
from ablatrix.orchestrator.report import divergence
from ablatrix.orchestrator.report.document_scores import DocumentScores, parse_scores
from ablatrix.orchestrator.report.loss_curve import Curve, parse_rows, reduce_rows, share_columns
from ablatrix.orchestrator.report.sample_file import last_sample
from ablatrix.orchestrator.status import device_hours
from ablatrix.orchestrator.store.study_dir import read_study as read_record
from ablatrix.orchestrator.study.metric import NLL, Measure
from ablatrix.orchestrator.study.scale import SEPARATOR
from ablatrix.trainer.rundir import loss_digest, run_files, timing
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.files import read_bytes

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.device_hours import Use
    from ablatrix.orchestrator.store import study_dir
    from ablatrix.orchestrator.study.looks import Looks
    from ablatrix.orchestrator.study.tuning import Tuning

NUMBERS = (int, float)  # in JSON; true and false, whose type is a subclass of int, are none
States = Mapping[str, str | tuple[str, str]]


@dataclass(frozen=True)
class RunRecord:
    """One run: its entry in study.json, its state and the content of its files."""

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
    study_measure: Measure = NLL
    altered: str = ""  # how loss.csv differs from what the finished run wrote
    digest: str = ""  # of its files
    sample: str = ""  # the last text that its model generated
    uses: tuple[Use, ...] = ()  # its attempts, oldest first
    documents: DocumentScores | None = None  # its final evaluation by held-out document
    size: str = ""  # on the scale axis

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
        """False for a run made before the study was switched to a different measure."""
        return self.study_measure.is_of(self.summary)

    @cached_property
    def diverged(self) -> bool:
        """True if the run finished and counts as diverged by the rule in `divergence`."""
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
        if not np.isfinite(self.curve.train["loss"]).any() and self.curve.rows:
            return None, None  # a command that reports no training loss: its initial_loss is held-out
        last = self.value if self.measure == "loss" else self.number("final_loss")
        return self.number("initial_loss"), last

    @property
    def _held_out_ends(self) -> divergence.Ends:
        """First and last value of the measure, if there was more than one evaluation."""
        values = self.curve.held_out["val_loss"]
        return (float(values[0]), self.value) if len(values) > 1 and self.measure != "loss" else (None, None)

    @cached_property
    def evaluations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, steps, value) at every evaluation of the measure, the final one from summary.json; each (E,)."""
        tokens, steps, loss = (self.curve.held_out[name] for name in ("tokens", "iter", "val_loss"))
        end = [v for v in (self.number("tokens"), self.number("iters"), self.value) if v is not None]
        if len(end) == 3:
            before = tokens < end[0]
            columns = zip((tokens, steps, loss), end, strict=True)
            tokens, steps, loss = (np.concatenate([values[before], [last]]) for values, last in columns)
        return tokens, steps, loss

    @property
    def timing(self) -> dict[str, Any]:
        """Host, hardware, start and speed, from summary.json; {} for a run that has not finished."""
        found = self.summary.get(timing.KEY)
        return found if isinstance(found, dict) else {}

    @property
    def step_seconds(self) -> float | None:
        """Seconds per step while nothing disturbed the run, None if unknown."""
        value = self.timing.get("step_seconds")
        return value if isinstance(value, float) and value > 0 else None

    @cached_property
    def usable(self) -> bool:
        """True if its final value enters means and intervals."""
        return self.finished and not self.diverged and self.value is not None and not self.wrong_overrides

    def number(self, name: str) -> float | None:
        """Return a number from summary.json, None if it is missing or not finite."""
        value: Any = self.summary.get(name)
        return float(value) if type(value) in NUMBERS and math.isfinite(value) else None

    @property
    def measure(self) -> str:
        """Column of its final value: `loss` (mean training loss) if a command reported no held-out loss."""
        return str(self.summary.get("measure", "val_loss"))

    @property
    def command(self) -> list[str]:
        """The command that the run starts, as words with unfilled placeholders; [] for our trainer."""
        words = self.config.get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    @property
    def skipped(self) -> dict[str, int]:
        """Number of corpus documents that were skipped, by reason."""
        counts = self.summary.get("skipped_documents")
        found = counts.items() if isinstance(counts, dict) else []
        return {str(reason): int(n) for reason, n in found if isinstance(n, int)}

    def setting(self, key: str) -> Any:
        """Return a value of config.json by its dotted key, None if there is none."""
        settings = self.config.get("settings")  # of a command
        return _find(settings if isinstance(settings, dict) else self.config, key)

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
        """Overrides missing from config.json: the feature never reached the trainer."""
        if not self.config:
            return ()
        return tuple(k for k, v in sorted(self.overrides.items()) if _is_kept(k, v) and self.setting(k) != v)


def _find(tree: Any, key: str) -> Any:
    while key and isinstance(tree, dict):
        if key in tree:
            return tree[key]
        section, _, key = key.partition(".")
        tree = tree.get(section)
    return None


def _is_kept(key: str, wanted: Any) -> bool:
    """False for settings that change when the configuration is resolved: paths become absolute, nulls are filled in."""
    is_share = key.endswith("_interval") and isinstance(wanted, str)  # such as 10%, which becomes steps
    paths = ("data.file_path", "data.test_file")
    return wanted is not None and not is_share and not key.startswith("system.") and key not in paths


@dataclass(frozen=True)
class Study:
    """A study on disk. digest: a hash of everything that was read, states included."""

    name: str
    folder: Path
    file: str
    features: dict[str, dict[str, Any]]
    runs: tuple[RunRecord, ...]
    digest: str
    cells: dict[str, tuple[RunRecord, ...]] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)  # experiment_info: name, description, date, hypothesis
    measure: Measure = NLL  # what its runs are compared by
    margin: float | None = None  # effects below it are negligible, as the experiment file says
    margin_changed: bool = False  # after the study was first submitted
    design: tuple[Any, ...] = ()  # the entries of `design:`
    sizes: tuple[str, ...] = ()  # of the scale axis, from small to large
    predict: float | None = None  # multiple of the largest compute at which effects are predicted
    stop_if: str | None = None  # `hurts`: larger sizes of a cell that hurts are not queued
    looks: Looks | None = None  # planned looks
    plans: tuple[study_dir.Planned, ...] = ()  # the first submission and each change since
    tune: Tuning | None = None  # what is tuned in every cell

    def with_runs(self, runs: Iterable[RunRecord]) -> Study:
        """Return the study reduced to these runs; its cells keep their order, and cells without runs are dropped."""
        kept = tuple(runs)
        found = by_cell(kept)
        return replace(self, runs=kept, cells={name: found[name] for name in self.cells if name in found})

    def at_size(self, size: str) -> Study:
        """Return the study at one size, with cells named as in the experiment file."""
        runs = tuple(
            replace(run, cell=run.cell.removesuffix(f"{SEPARATOR}{size}")) for run in self.runs if run.size == size
        )
        return replace(self, runs=runs, cells=by_cell(runs), sizes=())


def by_cell(runs: Iterable[RunRecord]) -> dict[str, tuple[RunRecord, ...]]:
    """Return the runs of each cell, in order."""
    cells: dict[str, list[RunRecord]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    return {name: tuple(group) for name, group in cells.items()}


def find_reference(cells: Mapping[str, Sequence[RunRecord]]) -> str | None:
    """Return the cell without features; if the design has none, its first cell."""
    return next((name for name, runs in cells.items() if not runs[0].features), next(iter(cells), None))


def read_study(folder: Path, states: States) -> Study:
    """Read every run of a study. Raises UserError if `folder` contains no usable study.json."""
    return of_study(read_record(folder), states)


def of_study(study: study_dir.Study, states: States) -> Study:
    """Read every run of a study."""
    measure, margins = study.measure, study.margins
    parts: dict[Any, Any] = {}
    runs: list[RunRecord] = []
    slow = False
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(study.runs), READ_AT_ONCE):
            batch = study.runs[start : start + READ_AT_ONCE]
            began = perf_counter()
            read = list((pool.map if slow else map)(read_files, [f"{study.folder}/{run.id}" for run in batch]))
            slow = slow or perf_counter() - began > SLOW * len(batch)
            runs += [parse_run(run, files, states, measure, parts) for run, files in zip(batch, read, strict=True)]
    inputs = [repr(study)]
    inputs += [f"{run.id} {run.state} {run.reason} {run.digest}" for run in runs]
    return Study(
        name=study.name,
        folder=study.folder,
        file=study.file,
        features={name: dict(settings or {}) for name, settings in study.features.items()},
        runs=tuple(runs),
        digest=hashlib.sha256("\n".join(inputs).encode()).hexdigest(),
        cells=by_cell(runs),
        info={name: text for name, text in study.info.items() if text},
        measure=measure,
        margin=margins[-1][1] if margins else None,
        margin_changed=len(margins) > 1,
        design=tuple(study.design),
        looks=study.looks,
        plans=tuple(study.plans),
        sizes=tuple(study.scale.get("sizes", ())),
        predict=study.scale.get("predict"),
        tune=study.tune,
        stop_if=study.scale.get("stop_if"),
    )


FILES = (
    run_files.CONFIG,
    run_files.SUMMARY,
    run_files.PROVENANCE,
    run_files.LOSS,
    run_files.VAL_DOCUMENTS,
    run_files.SAMPLES,
)


PLAIN = 2  # version of marshal's format: equal values have equal bytes, 1 and 1.0 do not
READ_AT_ONCE = 64  # runs
SLOW = 1e-3  # seconds for the files of a run, above which threads gain more by waiting together than they cost

Files = tuple[list[bytes], list[dict[str, Any]]]


def read_files(folder: str) -> Files:
    """Return the content of FILES in a run folder, and its events."""
    return [_read(f"{folder}/{name}") for name in FILES], read_events(folder, newest_only=("heartbeat", "checkpoint"))


def parse_run(
    run: study_dir.StudyRun, files: Files, states: States, measure: Measure, parts: dict[Any, Any]
) -> RunRecord:
    """Return one run. run: its entry in study.json; parts: cache of the JSON sections that runs share."""
    contents, events = files
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    config, summary, provenance = (_parse_object(data, parts) for data in contents[:3])
    if "iters" not in summary:
        summary = {}  # a command's own file of that name
    curve = share_columns(reduce_rows(parse_rows(contents[3], measure.column)), parts)
    last = int(curve.last_iter) if curve.rows else 0
    uses = device_hours.uses_of(run.id, events) or device_hours.use_of_summary(run.id, summary)
    state = states.get(run.id, "done" if summary else "planned")
    word, reason = (state, "") if isinstance(state, str) else state
    digest = hashlib.sha256(repr((digests, uses)).encode())
    return RunRecord(
        id=run.id,
        cell=run.cell,
        seed=run.seed,
        features=tuple(run.features),
        overrides=run.overrides,
        state=word,
        reason=reason or "",
        config=config,
        summary=summary,
        provenance=provenance,
        curve=curve,
        study_measure=measure,
        altered=loss_digest.explain_change(summary, digests[3], curve.rows, last) if summary else "",
        digest=digest.hexdigest(),
        sample=last_sample(contents[5]),
        uses=tuple(uses),
        documents=parse_scores(contents[4]) if summary else None,
        size=run.size,
    )


def _read(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""


def _parse_object(data: bytes, parts: dict[Any, Any]) -> dict[str, Any]:
    """Parse a JSON object, {} if there is none; equal sections of different files share one object."""
    try:
        value = from_json(data.decode("utf-8", "replace")) if data else {}
    except ValueError:
        value = {}
    sections = value.items() if isinstance(value, dict) else ()
    return {
        sys.intern(key): parts.setdefault(marshal.dumps(part, PLAIN), part) if isinstance(part, dict) else part
        for key, part in sections
    }
