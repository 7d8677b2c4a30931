"""What is fuzzed: a name, a function over bytes, seeds made here. What the functions assert are promises too."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablatrix.orchestrator.job import binary_logs, metric_series, metric_sources
from ablatrix.orchestrator.report import collect, curve_cache
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.status import run_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.study import experiment, extends, interpolation, matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.terminal import tables as display
from ablatrix.trainer import config
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError


@dataclass(frozen=True)
class Target:
    """run: what libFuzzer calls with each input. longest: bytes of an input."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4096

    def run(self, data: bytes) -> None:
        """One input; an error of ours is an answer."""
        with contextlib.suppress(AblatrixError):
            self.read(data)


@functools.cache
def folder() -> Path:
    """A folder of this process; TMPDIR says where, and it is removed with that."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


# ---- experiment files

EXPERIMENT = b"""\
name: study
vars: {iters: 100, half: "${iters // 2}", where: "${env:HOME,/tmp}"}
base:
  data: {file_path: a.jsonl, tokenizer: sample, block_size: 32}
  model: {model_type: gpt-nano}
  trainer: {max_iters: "${iters}", learning_rate: 3e-3}
features:
  rope: {model.rope: true}
  lr: {levels: {low: {trainer.learning_rate: 1e-4}, high: {trainer.learning_rate: 1e-2}}}
design: [baseline, one_at_a_time, {factorial: 2}]
cells: {both: [rope, lr.high]}
exclude: [[rope, lr.low]]
seeds: [1, 2]
slurm: {time: "00:10:00", mem: 1G, extra: {nice: 5}}
configs: {big: {extends: small, base: {model.n_layer: 2}}, small: {seeds: 3}}
"""
COMMAND = b"""\
name: study
command: [python, train.py, "{flags}", "--out={run_dir}"]
metrics: {jsonl: "{run_dir}/metrics.jsonl", steps: "{steps}"}
base: {steps: 10, lr: 0.1, deep: {a: {b: 1}}}
features: {fast: {lr: 1.0}}
seeds: 1
"""

EXPRESSIONS = (b"int(a * 0.1)", b"x ${b} y", b"max(1, min(a, 5)) ** 2", b"round(a / 7, 2)", b"[1, {a: b}]")


def read_experiment(data: bytes) -> None:
    path = folder() / "study.yaml"
    path.write_bytes(data)
    loaded = load_experiment(path)
    if len(matrix.cells(loaded.experiment)) * len(loaded.experiment.seed_list) < 50:
        for run in matrix.runs(loaded, lambda _: 512):
            assert run.id and "/" not in run.id
            run.config.to_json().encode()


def read_expression(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    variables = interpolation.Variables({"a": 3, "b": "${a + 1}", "c": text, "d": ["${c}", "${c}"]}, {"E": text})
    for shown in ("${" + text + "}", text, "${c}${d}", "${env:E}"):
        try:
            str(variables.fill(shown)).encode("utf-8", "surrogatepass")
        except AblatrixError:
            continue


def read_sets(data: bytes) -> None:
    tree = extends.yamlfile.Tree({"vars": {}, "base": {}})
    sets = extends.parse_sets(data.decode("utf-8", "replace").split("\0"))
    extends.apply_sets(tree, sets, experiment.TOP_LEVEL)


# ---- files of a run

LOSS = b"iter,loss,dt,val_loss,lr,grad_norm,tokens,seconds\n5,3.25,0.01,,0.001,1.5,160,0.05\n10,3.0,0.01,3.1,,1,9,.1\n"


def read_loss(data: bytes) -> None:
    """Rows are lines of the file, steps rise; the quick reader of the report reads what the careful one does."""
    text = data.decode("utf-8", "replace")
    rows = run_files.whole_rows(text)
    lines = set(text[: text.rfind("\n") + 1].split("\n"))
    assert all(",".join(row) in lines for row in rows)
    steps = [int(row[0]) for row in rows]
    assert steps == sorted(set(steps))
    columns = collect.parse_rows(data)
    assert [int(step) for step in columns["iter"]] == steps
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            header = text[: text.find("\n")].strip().split(",")
            told = run_files.number(row[header.index(name)]) if name in header else None
            assert math.isnan(value) if told is None or math.isnan(told) else value == told, (name, row, value)
    with np.errstate(all="ignore"):
        collect.reduce_rows(columns)
    run = folder() / "run"
    run.mkdir(exist_ok=True)
    (run / run_files.LOSS).write_bytes(data)
    log = run_files.LossLog(run, 10**9)
    assert [row["iter"] for row in log.rows()] == [step for step in steps if step <= 10**9]
    metric_series.Series().load(text)


def read_config(data: bytes) -> None:
    path = folder() / run_files.CONFIG
    path.write_bytes(data)
    read = config.load(path)
    assert config.validate(json.loads(read.to_json())) == read


def config_seeds() -> list[bytes]:
    tree = {"data": {"file_path": "a.jsonl"}, "model": {"model_type": "gpt-nano"}, "trainer": {"max_iters": 5}}
    return [config.validate(tree).to_json().encode(), json.dumps(tree).encode()]


@functools.cache
def study() -> tuple[Path, tuple[Path, ...]]:
    """A finished study, and the files in it that are read again."""
    from tests.report import studies

    where = folder() / "study"
    plan = studies.Plan(seeds=(1, 2), features={"rope": {"model.rope": True}}, domains=("a", "b"), contexts=(64, 128))
    plan.rows, plan.max_iters = 8, 40
    studies.write_study(where, plan)
    run = next(path for path in sorted(where.iterdir()) if path.is_dir())
    for event in ("submitting", "queued", "started", "heartbeat", "checkpoint", "signal", "stopped", "ended"):
        run_files.append_event(
            run, event, attempt=1, token="0" * 16, iter=5, launcher="sbatch", state="failed", reason="x"
        )
    claim = run / ".queue" / "1" / "claim.json"
    claim.parent.mkdir(parents=True)
    claim.write_text('{"attempt": 1, "token": "0123456789abcdef", "index": 0, "tasks": 2}')
    others = {
        study_dir.ORIGINS: {"model.rope": "a.yaml:3"},
        "command.json": {"command": ["true"], "steps": 5},
        run_files.PROVENANCE: {"git_commit": "ab", "versions": {"torch": "2"}, "python": "3.11"},
    }
    for name, content in others.items():
        (run / name).write_text(json.dumps(content))
    names = (run_files.CONFIG, run_files.SUMMARY, run_files.LOSS, run_files.EVENTS, *others)
    return where, (where / study_dir.STUDY, claim, *(run / name for name in names))


def read_study(data: bytes) -> None:
    """The first byte chooses the file of a finished study that holds the rest."""
    where, files = study()
    path = files[data[0] % len(files)] if data else files[0]
    before = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        look_at(where)
    finally:
        path.write_bytes(before)


def look_at(where: Path) -> None:
    """What `status`, `show` and the words and tables of `report` read."""
    from ablatrix.orchestrator.report import (  # seconds of imports, for this target alone
        analysis,
        methods,
        tables,
        wording,
    )

    console = display.Console(file=io.StringIO(), width=180, markup=False, highlight=False)
    found = study_dir.load_study(where)
    without_jobs = run_state.Scheduler(jobs={}, _next_try=math.inf)
    states = run_state.collect(found, without_jobs)
    json.loads(run_state.as_json(states, without_jobs), parse_constant=_no_constant)
    console.print(display.status_table(states, str(where), 80))
    display.print_run(found, found.runs[0], console)
    with np.errstate(all="ignore"):
        result = analysis.analyse(collect.read_study(where, run_state.reasons(states)))
        texts = [*wording.notes(result), *methods.paragraphs(result), tables.summary(result), tables.comparison(result)]
    "".join(texts).encode()


def _no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def study_seeds() -> list[bytes]:
    _, files = study()
    return [bytes([number]) + path.read_bytes() for number, path in enumerate(files)]


def read_cache(data: bytes) -> None:
    path = folder() / curve_cache.CURVES
    path.write_bytes(data)
    for curve in curve_cache.load(path).values():
        assert curve.train.shape[0] == len(curve_cache.TRAIN) and curve.held_out.shape[0] == len(curve_cache.HELD_OUT)


def cache_seeds() -> list[bytes]:
    path = folder() / curve_cache.CURVES
    path.unlink(missing_ok=True)
    curve_cache.save(path, {"ab": collect.reduce_rows(collect.parse_rows(LOSS))}, {})
    return [path.read_bytes()]


# ---- the scheduler


def read_slurm(data: bytes) -> None:
    """Every parser of what Slurm's commands print: jobs whose ids stand in the text, with their states."""
    text = data.decode("utf-8", "replace")
    for parse in (lambda t: commands.parse_squeue(t, "me"), commands.parse_scontrol, commands.parse_sacct):
        try:
            jobs = parse(text)
        except commands.ControllerError:
            continue
        for job_id, job in jobs.items():
            assert job.id == job_id and job_id.partition("_")[0] in text and job.state
    for word in text.split():
        commands.full_state(word)


SLURM = (
    b"8_[5-6%7]|PENDING|me|||(Resources)|ablatrix:0123456789abcdef\n8_1|RUNNING|me|node3|9:59|None|\n",
    b"JobId=12 ArrayJobId=10 ArrayTaskId=1-3:2 JobState=FAILED Reason=None ExitCode=0:53 NodeList=(null) Comment=x\n",
    b"10_1|OUT_OF_ME+|0:125|node1\n10_[2-3]|CANCELLED by 0|0:0|None assigned\n",
)


# ---- what commands write


def read_metrics(data: bytes) -> None:
    """The first byte chooses the format; loss.csv's text comes out, and reads back as what went in."""
    kind, rest = data[:1], data[1:]
    found: list[Any] = []
    if kind in (b"t", b"w"):
        frames = binary_logs.tensorboard_frames if kind == b"t" else binary_logs.wandb_frames
        record = binary_logs.event_record if kind == b"t" else binary_logs.history_record
        for _, payload in frames(rest, 0):
            try:
                told = record(payload)
            except binary_logs.DAMAGE:
                continue
            found += metric_sources.JsonLines({}).pick(told)
    else:
        parser = metric_sources.CsvLines({}) if kind == b"c" else metric_sources.JsonLines({})
        for line in rest.decode("utf-8", "replace").split("\n"):
            found += parser.line(line)
    rows = metric_series.Series()
    for one in found:
        rows.add(one, 1.0)
    text = rows.text(32.0)
    again = metric_series.Series()
    again.load(text)
    assert sorted(again.rows) == sorted(rows.rows)
    rows.headline(), rows.first_loss(), rows.final_loss()


METRICS = (
    b"cstep,loss,val_loss\n1,3.5,\n2,3.25,3.5\n",
    b'j{"step": 1, "train": {"loss": 3.5}, "loss": 2}\n{"step": 2.0, "loss": "3", "_seconds": 1}\n',
    b"t" + bytes.fromhex("1a00000000000000aaaaaaaa10012a160a140a046c6f737315000060400a06") + bytes(20),
    b"w" + bytes(7) + bytes(4) + b"\x0c\x00\x01" + bytes.fromhex("120a0a080a046c6f737335000060"),
)

TARGETS = {
    "experiment": Target(read_experiment, lambda: [EXPERIMENT, COMMAND]),
    "expression": Target(read_expression, lambda: EXPRESSIONS, 400),
    "set": Target(read_sets, lambda: [b"vars.a=[1, 2]\0seeds=3", b"trainer.max_iters=5"], 400),
    "loss.csv": Target(read_loss, lambda: [LOSS, LOSS + b"10,1.0,,,,,,\n8,2"]),
    "config.json": Target(read_config, config_seeds),
    "study": Target(read_study, study_seeds, 16384),
    "curves": Target(read_cache, cache_seeds),
    "slurm": Target(read_slurm, lambda: SLURM),
    "metrics": Target(read_metrics, lambda: METRICS),
}
