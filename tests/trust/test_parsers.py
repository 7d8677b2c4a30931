"""Everything that reads text: what comes back is what was written or nothing, and only errors of ours come out."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablatrix.orchestrator.report import collect
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.status import run_state
from ablatrix.orchestrator.store import run_progress, study_dir
from ablatrix.orchestrator.study import yaml_tree
from ablatrix.trainer import config
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError
from tests.evidence import Cases, Tally
from tests.fuzz import targets
from tests.trust import damage

Json = Any
WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def many(count: int) -> Any:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", [name for name in targets.TARGETS if name != "study"])
def test_damaged_input_is_read_or_refused(name: str, cases: Cases, seed: int, tally: Tally) -> None:
    """The functions of the fuzzer, over inputs damaged at random."""
    target, count = targets.TARGETS[name], cases(40, 2000)
    rng = random.Random(f"{seed} {name}")
    seeds = list(target.seeds())
    for number in range(count):
        target.run(damage.damaged(rng, seeds[number % len(seeds)])[: target.longest])
    tally(f"damaged input is read or refused: {name}", cases=count, detail="0 tracebacks")


def test_experiment_files_say_what_was_written(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    count = cases(100, 5000)
    path = tmp_path / "a.yaml"

    @many(count)
    @given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=5))
    def read_back(tree: dict[str, Json]) -> None:
        path.write_text(json.dumps(tree, ensure_ascii=True), encoding="utf-8")
        read = yaml_tree.load(path).data
        assert read == tree and json.dumps(read) == json.dumps(tree)

    read_back()
    tally("an experiment file's values are those written", cases=count, detail="0 values of another type")


def spoiled_lines(draw: st.DrawFn, lines: list[bytes], junk: st.SearchStrategy[bytes]) -> bytes:
    """The lines, in places with junk between them, a line twice, a torn one that somebody closed, a cut end."""
    content = b""
    for line in lines:
        kind = draw(st.sampled_from(["whole"] * 6 + ["junk", "twice", "torn"]))
        if kind == "junk":
            content += draw(junk).replace(b"\n", b" ") + b"\n"
        # a cut within the last cell cannot be told from a shorter number: no such cut is made
        content += line[: draw(st.integers(0, line.rfind(b",")))] + b"\n" if kind == "torn" else b""
        content += line + b"\n" + (line + b"\n" if kind == "twice" else b"")
    return content[: len(content) - draw(st.integers(0, 60))] if draw(st.booleans()) else content


def as_line(row: list[Any]) -> bytes:
    return ",".join("" if cell is None else repr(cell) for cell in row).encode()


NUMBERS = st.none() | st.floats() | st.floats(0, 10)
JUNK = st.binary(max_size=40) | st.sampled_from([word for word in damage.WORDS if b"\n" not in word])


def test_rows_of_loss_csv_are_those_written(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    """By each of its readers: the trainer's, `status`, the report."""
    count = cases(150, 5000)
    path = tmp_path / run_files.LOSS
    width = len(run_files.COLUMNS)

    @st.composite
    def files(draw: st.DrawFn) -> tuple[dict[int, list[Any]], bytes]:
        steps = sorted(draw(st.sets(st.integers(0, 10**9), min_size=1, max_size=8)))
        rows = {step: [step, *(draw(NUMBERS) for _ in range(width - 1))] for step in steps}
        lines = [",".join(run_files.COLUMNS).encode(), *map(as_line, rows.values())]
        return rows, lines[0] + b"\n" + spoiled_lines(draw, lines[1:], JUNK)

    @many(count)
    @given(files())
    def read_back(made: tuple[dict[int, list[Any]], bytes]) -> None:
        truth, content = made
        path.write_bytes(content)
        text = content.decode("utf-8", "replace")
        for row in run_files.whole_rows(text):
            assert ",".join(row).encode() == as_line(truth[int(row[0])])
        columns = collect.parse_rows(content)
        for i, step in enumerate(columns["iter"]):
            for name in collect.READ:
                assert same(columns[name][i], truth[int(step)][run_files.COLUMNS.index(name)])
        names, last = run_progress._last_rows(path)
        assert all(",".join(row).encode() == as_line(truth[int(row[0])]) for row in last)
        assert not last or tuple(names) == run_files.COLUMNS
        for kept in run_files.LossLog(tmp_path, 10**12).rows():
            step = kept["iter"]
            assert isinstance(step, int)
            assert all(same(kept[name], truth[step][i]) for i, name in enumerate(run_files.COLUMNS) if name != "tokens")

    read_back()
    tally("rows of a spoiled loss.csv are those written", cases=count, detail="4 readers, 0 invented values")


def same(read: float | None, written: float | None) -> bool:
    """The same number; what was left empty is None or nan."""
    if written is None or math.isnan(written):
        return read is None or math.isnan(read)
    return read == written


def test_another_header_is_not_taken_for_ours(tmp_path: Path, tally: Tally) -> None:
    path = tmp_path / run_files.LOSS
    path.write_text("iter,loss,val_loss,dt,tokens,lr,seconds,grad_norm\n7,1.5,2.5,0.25,100,1e-3,9.0,3.0\n")
    names, rows = run_progress._last_rows(path)
    assert dict(zip(names, rows[0], strict=True))["val_loss"] == "2.5"
    (kept,) = run_files.LossLog(tmp_path, 100).rows()
    assert kept == dict(zip(run_files.COLUMNS, (7, 1.5, 0.25, 2.5, 1e-3, 3.0, 100, 9.0), strict=True))
    path.write_text("step,value\n1,2\n")
    assert run_progress._last_rows(path)[1] == [] and run_files.LossLog(tmp_path, 100).rows() == []
    tally("columns of a loss.csv are found by its header", cases=2, detail="0 invented values")


EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(run_state.ALIVE + run_state.ENDED + ("queued", "submitting"))},
    optional={
        "time": st.floats(0, 2e9),
        "attempt": st.integers(0, 99),
        "iter": st.integers(0, 10**9),
        "reason": WORDS,
        "state": st.sampled_from(run_state.STATES),
        "job_id": st.from_regex(r"[0-9]{1,6}(_[0-9])?", fullmatch=True),
        "peak_memory_bytes": st.none() | st.integers(0, 2**50),
    },
)


def test_events_are_those_written(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    count = cases(100, 5000)

    @st.composite
    def files(draw: st.DrawFn) -> tuple[list[Json], bytes]:
        records = draw(st.lists(EVENTS, max_size=6))
        content = b""
        for record in records:
            if draw(st.integers(0, 4)) == 0:
                content += draw(JUNK).replace(b"\n", b" ") + b"\n"
            line = json.dumps(record).encode() + b"\n"
            torn = line[: draw(st.integers(0, len(line) - 2))] + b"\n" if draw(st.integers(0, 4)) == 0 else b""
            content += torn + line
        return records, content[: len(content) - draw(st.integers(0, 60))] if draw(st.booleans()) else content

    @many(count)
    @given(files())
    def read_back(made: tuple[list[Json], bytes]) -> None:
        truth, content = made
        (tmp_path / run_files.EVENTS).write_bytes(content)
        read = run_files.read_events(tmp_path)
        assert all(record in truth for record in read)
        if content.endswith(b"\n") and not content.startswith(b"\n"):
            assert len(read) <= len(truth)
        run = study_dir.StudyRun("a", "a", 1, [], {}, tmp_path)
        study = study_dir.Study(tmp_path, "s", "f", 0.0, {}, [run])
        assert run_state.collect(study, run_state.Scheduler(jobs={}, _next_try=math.inf))[0].state in run_state.STATES

    read_back()
    tally("events of a spoiled events.jsonl are those written", cases=count, detail="0 invented records")


def json_files() -> dict[str, bytes]:
    _, files = targets.study()
    return {path.name: path.read_bytes() for path in files if path.suffix == ".json"}


def test_a_json_file_is_read_whole_or_not_at_all(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    """Cut at every byte: config.json, summary.json, study.json, claim.json and the others."""
    tried = 0
    step = cases(23, 1)
    for name, content in json_files().items():
        path = tmp_path / name
        for length in range(0, len(content.rstrip()), step):
            path.write_bytes(content[:length])
            assert run_files.read_json(path) is None
            for read in (config.load, lambda p: study_dir.load_study(p.parent)):
                with pytest.raises(AblatrixError):
                    read(path)
            tried += 1
    tally("a cut JSON file is refused at every length", cases=tried, detail=f"{len(json_files())} files")


STATES = st.sampled_from((*sorted(commands.PENDING), *sorted(commands.RUNNING), *commands.ENDED))
NOISE = st.sampled_from(
    ("", "slurm_load_jobs: Warnung: Zeitüberschreitung", "squeue: error: x|y|me", "|" * 6, "|" * 3, "JobId=", "=" * 9)
) | st.text(max_size=60).map(lambda text: text.replace("\n", " "))
Jobs = dict[str, str]


@st.composite
def answers(draw: st.DrawFn) -> tuple[Jobs, str, str, str]:
    """(job id -> state, squeue's, scontrol's and sacct's answer), with lines of noise in them."""
    truth: Jobs = {}
    lines: tuple[list[str], list[str], list[str]] = ([], [], [])
    for base in sorted(draw(st.sets(st.integers(1, 10**7), max_size=4))):
        state = draw(STATES)
        first, count, stride = draw(st.integers(0, 50)), draw(st.integers(0, 5)), draw(st.integers(1, 3))
        ids = [f"{base}_{first + stride * i}" for i in range(count)] or [str(base)]
        tasks = f"{first}-{first + stride * (count - 1)}:{stride}" if count > 1 else str(first)
        written = f"{base}_[{tasks}%3]" if count else str(base)
        truth |= dict.fromkeys(ids, state)
        lines[0].append(f"{written}|{state}|me|node1|1:00|None|ablatrix:{base:016x}")
        array = f"ArrayJobId={base} ArrayTaskId={tasks} " if count else ""
        lines[1].append(f"JobId={base} {array}JobState={state} Reason=None ExitCode=0:0 NodeList=node1 Power=")
        lines[2].append(f"{written}|{state}|0:0|node1")
    for part in lines:
        for _ in range(draw(st.integers(0, 3))):
            part.insert(draw(st.integers(0, len(part))), draw(NOISE))
    return truth, *("\n".join(part) + "\n" for part in lines)  # type: ignore[return-value]


def test_jobs_are_those_that_slurm_told(cases: Cases, tally: Tally) -> None:
    """Warnings, words of another language and torn lines among its answers make no job, and hide none."""
    count = cases(150, 10_000)

    @many(count)
    @given(answers(), st.data())
    def parsed(told: tuple[Jobs, str, str, str], data: st.DataObject) -> None:
        truth, *texts = told
        parsers = (lambda text: commands.parse_squeue(text, "me"), commands.parse_scontrol, commands.parse_sacct)
        for parse, text in zip(parsers, texts, strict=True):
            found = {job_id: job.state for job_id, job in parse(text).items()}
            assert truth.items() <= found.items()
            cut = text[: text.rfind("\n", 0, data.draw(st.integers(0, len(text)))) + 1]
            assert {job_id: job.state for job_id, job in parse(cut).items()}.items() <= found.items()

    parsed()
    tally("jobs are those that Slurm's answers name", cases=count, detail="3 commands, 0 invented jobs")


ENDLESS = (
    "1_[1-4294967295]|PENDING|me||1:00|x|y",
    "1_[0-3999999:1]|PENDING|me||1:00|x|y",
    "1_[" + "0-3999999," * 100_000 + "]|PENDING|me||1:00|x|y",
    "9" * 5000 + "|PENDING|me||1:00|x|y",
    "1_[0-5:0]|PENDING|me||1:00|x|y",
    "١٢_٣|PENDING|me||1:00|x|y",
    "JobId=" + " " * 300_000 + "x",
    "JobId=1 ArrayJobId=1 ArrayTaskId=0-3999999 JobState=PENDING",
    "a=" * 200_000,
)


def test_an_answer_is_not_unfolded_beyond_reason(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    monkeypatch.setattr(commands, "MOST_JOBS", 2000)
    for answer in ENDLESS:
        for parse in (lambda text: commands.parse_squeue(text, "me"), commands.parse_scontrol):
            with contextlib.suppress(commands.ControllerError):
                assert len(parse(answer)) == 0
    tally("answers of Slurm's are not unfolded beyond reason", cases=len(ENDLESS), detail="a limit of jobs")


def test_a_state_that_we_do_not_know_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """A word of a newer Slurm: the files' last word stands, and nothing is written down."""
    run = study_dir.StudyRun("a", "a", 1, [], {}, tmp_path)
    run_files.append_event(tmp_path, "queued", launcher="sbatch", job_id="12", attempt=1, token="0" * 16)
    study = study_dir.Study(tmp_path, "s", "f", 0.0, {}, [run])
    jobs = commands.parse_squeue(f"12|POLISHING|me|node1|1:00|None|ablatrix:{'0' * 16}", "me")
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {})
    for event, state in (("", "queued"), ("started", "running"), ("failed", "failed")):
        if event:
            run_files.append_event(tmp_path, event)
        assert run_state.collect(study, run_state.Scheduler(jobs=jobs, _next_try=math.inf))[0].state == state
    assert [record["event"] for record in run_files.read_events(tmp_path)] == ["queued", "started", "failed"]
    tally("an unknown state of a job ends no run", cases=3)
