"""Files cut by crashes and full disks, and answers of Slurm with noise in them: read or refused, nothing invented."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablatrix.orchestrator.report import loss_curve
from ablatrix.orchestrator.slurm import commands, job_parsing, scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import run_progress, study_dir
from ablatrix.trainer import config
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.events import append_event, read_events
from tests.conftest import Verb
from tests.support.evidence import Cases, Tally
from tests.support.studies import Plan, write_study


def examples(count: int) -> Any:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a finished study, below the working folder, where no Slurm answers."""
    where = tmp_path / "out" / "study"
    plan = Plan(seeds=(1, 2), features={"rope": {"model.rope": True}}, rows=8, max_iters=40)
    write_study(where, plan)
    for run in where.glob("*-seed*"):
        for event in ("submitting", "queued", "started", "heartbeat", "checkpoint"):
            append_event(run, event, attempt=1, token="0" * 16, iter=5, launcher="local")
        claim = run / ".queue" / "1" / "claim.json"
        claim.parent.mkdir(parents=True)
        claim.write_text('{"attempt": 1, "token": "0123456789abcdef", "index": 0, "tasks": 2}')
        (run / run_files.PROVENANCE).write_text('{"git_commit": "ab", "versions": {"torch": "2"}, "python": "3.11"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return where


# ---- loss.csv, events.jsonl and JSON files


def spoil_lines(draw: st.DrawFn, lines: list[bytes]) -> bytes:
    """Return the lines, some twice, some torn and closed by a later attempt, maybe without the end of the file."""
    content = b""
    for line in lines:
        kind = draw(st.sampled_from(["whole"] * 4 + ["twice", "torn"]))
        # a cut within the last cell looks like a shorter number
        content += line[: draw(st.integers(0, line.rfind(b",")))] + b"\n" if kind == "torn" else b""
        content += (line + b"\n") * (2 if kind == "twice" else 1)
    return content[: len(content) - draw(st.integers(0, 60))] if draw(st.booleans()) else content


def as_line(row: list[Any]) -> bytes:
    return ",".join("" if cell is None else repr(cell) for cell in row).encode()


def same(read: float | None, written: float | None) -> bool:
    """True if both are the same number, or both say that there is none."""
    if written is None or math.isnan(written):
        return read is None or math.isnan(read)
    return read == written


@st.composite
def loss_files(draw: st.DrawFn) -> tuple[dict[int, list[Any]], bytes]:
    """Return the rows by step, and a spoiled file of them."""
    numbers = st.none() | st.floats() | st.floats(0, 10)
    steps = sorted(draw(st.sets(st.integers(0, 10**9), min_size=1, max_size=8)))
    rows = {step: [step, *(draw(numbers) for _ in loss_csv.COLUMNS[1:])] for step in steps}
    return rows, ",".join(loss_csv.COLUMNS).encode() + b"\n" + spoil_lines(draw, [*map(as_line, rows.values())])


def test_rows_of_a_spoiled_loss_csv_are_those_written(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    """Each reader: the trainer's, the one of `status`, the one of the report."""
    count, path = cases(60, 2000), tmp_path / run_files.LOSS

    @examples(count)
    @given(loss_files())
    def read_back(made: tuple[dict[int, list[Any]], bytes]) -> None:
        truth, content = made
        path.write_bytes(content)
        for row in loss_csv.parse_rows(content.decode()) + run_progress._last_rows(path)[1]:
            assert ",".join(row).encode() == as_line(truth[int(row[0])])
        columns = loss_curve.parse_rows(content)
        for name in loss_curve.READ:
            at = loss_csv.COLUMNS.index(name)
            written = [truth[int(step)][at] for step in columns["iter"]]
            assert all(map(same, columns[name], written))
        for kept in loss_csv.LossLog(tmp_path, 10**12).rows():
            written = dict(zip(loss_csv.COLUMNS, truth[int(kept["iter"] or 0)], strict=True))
            assert all(same(kept[name], written[name]) for name in loss_csv.COLUMNS if name != "tokens")

    read_back()
    tally("rows of a spoiled loss.csv are those written", cases=count, detail="4 readers, 0 invented values")


def test_columns_are_found_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / run_files.LOSS
    path.write_text("iter,loss,val_loss,dt,tokens,lr,seconds,grad_norm\n7,1.5,2.5,0.25,100,1e-3,9.0,3.0\n")
    names, rows = run_progress._last_rows(path)
    assert dict(zip(names, rows[0], strict=True))["val_loss"] == "2.5"
    (kept,) = loss_csv.LossLog(tmp_path, 100).rows()
    assert kept == dict(zip(loss_csv.COLUMNS, (7, 1.5, 0.25, 2.5, 1e-3, 3.0, 100, 9.0), strict=True))
    path.write_text("step,value\n1,2\n")
    assert run_progress._last_rows(path)[1] == [] and loss_csv.LossLog(tmp_path, 100).rows() == []


def test_events_of_a_torn_file_are_those_written(tmp_path: Path, tally: Tally) -> None:
    """Cut at every byte; then appended to by the next attempt."""
    for step in (1, 2):
        append_event(tmp_path, "checkpoint", iter=step)
    path = tmp_path / run_files.EVENTS
    content, written = path.read_bytes(), read_events(tmp_path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        append_event(tmp_path, "started")
        *before, last = read_events(tmp_path)
        assert last["event"] == "started"
        assert before == written[: len(before)]
    tally("events of a torn events.jsonl are those written", cases=len(content), detail="0 invented records")


def test_a_json_file_is_read_whole_or_not_at_all(study: Path, tmp_path: Path, cases: Cases, tally: Tally) -> None:
    """Cut at every byte: the files of a study and of a run."""
    run = next(study.glob("rope-*"))
    files = [study / study_dir.STUDY, run / ".queue/1/claim.json", *run.glob("*.json")]
    tried = 0
    for content in [file.read_bytes().rstrip() for file in files]:
        path = tmp_path / study_dir.STUDY
        for length in range(0, len(content), cases(29, 1)):
            path.write_bytes(content[:length])
            assert run_files.read_json(path) is None
            with pytest.raises(AblatrixError):
                config.load(path)
            with pytest.raises(AblatrixError):
                study_dir.load_study(tmp_path)
            tried += 1
    tally("a cut JSON file is refused at every length", cases=tried, detail=f"{len(files)} files")


# ---- commands on a damaged study


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def zero(rng: random.Random, data: bytes) -> bytes:
    """Return the data with a block that never reached the disk."""
    at, size = rng.randrange(len(data)), rng.randint(1, 4096)
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def edit(rng: random.Random, data: bytes) -> bytes:
    """Return the data with another value of another type, as a hand edit leaves it."""
    marks = [i for i, byte in enumerate(data) if byte in b',:\n"[]{} '] or [0]
    at = rng.choice(marks)
    word = rng.choice([b"", b"null", b"-1", b"NaN", b"[]", b"{}", b'"x"', b"1e999", b"true", b"\xff", b"\n"])
    return data[: at + 1] + word + data[at + 1 + rng.randrange(8) :]


def reorder(rng: random.Random, data: bytes) -> bytes:
    """Return the lines in another order, one of them twice."""
    lines = data.splitlines(keepends=True)
    return b"".join([*rng.sample(lines, len(lines)), *lines[:1]])


@pytest.mark.slow
def test_commands_on_a_damaged_study_end_without_a_traceback(
    study: Path, verb: Verb, cases: Cases, seed: int, tally: Tally
) -> None:
    rng, count = random.Random(seed), cases(6, 400)
    run = ("rope-seed1", "--study", "study")
    verbs = [("status", "study"), ("status", "study", "--json"), ("show", *run), ("logs", *run), ("report", "study")]
    files = [path for path in sorted(study.rglob("*")) if path.is_file() and path.suffix != ".pt"]
    for number in range(count):
        path = rng.choice(files)
        before = path.read_bytes()
        path.write_bytes(rng.choice([cut, zero, edit, reorder])(rng, before))
        for words in verbs if number % 10 == 0 else verbs[:3]:
            code, _, errors = verb(*words, *(["--output", "out"] if words[0] != "logs" else []))
            assert code == 0 or (code in (1, 2) and errors.startswith("error: ")), (words, errors)
        path.write_bytes(before)
    tally("commands on a study with a damaged file", cases=count, detail="0 tracebacks, exit codes 0, 1, 2")


def test_an_unknown_state_of_a_job_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """A state of a newer Slurm: the run's own files decide, and nothing is written."""
    run = study_dir.StudyRun("a", "a", 1, [], {}, tmp_path)
    append_event(tmp_path, "queued", launcher="sbatch", job_id="12", attempt=1, token="0" * 16)
    study = study_dir.Study(tmp_path, "s", "f", 0.0, {}, [run])
    jobs = job_parsing.parse_squeue(f"12|POLISHING|me|node1|None|ablatrix:{'0' * 16}", "me")
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {})
    for event, state in (("", "queued"), ("started", "running"), ("failed", "failed")):
        if event:
            append_event(tmp_path, event)
        assert study_state.collect(study, scheduler.Scheduler(jobs=jobs, _next_try=math.inf))[0].state == state
    assert [record["event"] for record in read_events(tmp_path)] == ["queued", "started", "failed"]
    tally("an unknown state of a job ends no run", cases=3)
