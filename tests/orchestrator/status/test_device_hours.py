"""GPU-hours and CPU-hours of runs by their events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.status.device_hours import Hours, total, use_of_summary, uses_of
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.orchestrator.terminal import status_table
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import append_event, read_events

HOUR = 3600.0
GPU = {"gpus": ["3"], "processes": 1, "threads": 8}


def event(name: str, hours: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": HOUR * (1000 + hours), "host": "node1", **fields}


def test_all_attempts_count_up_to_their_last_sign_of_life() -> None:
    events = [
        event("queued", 0),
        event("started", 1, **GPU),
        event("heartbeat", 2.5),  # then its node failed
        event("ended", 40, state="lost"),  # found out days later
        event("resumed", 50, **GPU),
        event("heartbeat", 50.5),
        event("finished", 51),
        event("cleaned", 90),
    ]
    assert [(use.end - use.start) / HOUR for use in uses_of("a", events)] == [1.5, 1.0]
    assert total(uses_of("a", events)) == Hours(gpu=2.5)
    assert str(total(uses_of("a", events))) == "2.5 GPU-hours"


def test_the_gpus_of_a_distributed_run_count_each() -> None:
    share = {"gpus": ["0", "1", "2", "3"], "processes": 8, "threads": 4}  # on two nodes
    assert total(uses_of("a", [event("started", 0, **share), event("finished", 2)])) == Hours(gpu=16.0)


def test_runs_that_share_a_gpu_count_once_and_those_of_two_hosts_twice() -> None:
    a = uses_of("a", [event("started", 0, **GPU), event("finished", 2)])
    b = uses_of("b", [event("started", 1, **GPU), event("finished", 3)])
    c = uses_of("c", [{**event("started", 1, **GPU), "host": "node2"}, event("finished", 3)])
    assert total([*b, *a]) == Hours(gpu=3.0)
    assert total([*a, *b, *c]) == Hours(gpu=5.0)


def test_runs_on_a_cpu_count_their_threads() -> None:
    share: dict[str, Any] = {"gpus": [], "processes": 2, "threads": 4}
    uses = [use for run in "ab" for use in uses_of(run, [event("started", 0, **share), event("stopped", 0.5)])]
    assert total(uses) == Hours(cpu=8.0)
    assert str(total(uses)) == "8 CPU-hours"


def test_runs_of_earlier_versions_count_by_what_they_recorded() -> None:
    old = [event("started", 0, device="cuda (NVIDIA H100)"), event("finished", 2)]
    assert total(uses_of("a", old)) == Hours(gpu=2.0)
    assert total(use_of_summary("a", {"seconds": 7200.0, "device": "cuda:0", "processes": 2})) == Hours(gpu=4.0)
    assert use_of_summary("a", {}) == []


def test_old_heartbeats_are_left_out_but_not_the_last_of_an_attempt(tmp_path: Path) -> None:
    for _ in range(2):
        append_event(tmp_path, "started", **GPU)
        for i in range(50):
            append_event(tmp_path, "heartbeat", iter=i)
            append_event(tmp_path, "checkpoint", iter=i)
    found = read_events(tmp_path, newest_only=("heartbeat", "checkpoint"))
    assert [e["event"] for e in found] == ["started", *["heartbeat", "checkpoint"] * 2] * 2
    assert [e["iter"] for e in found if e["event"] == "heartbeat"] == [48, 49] * 2
    everything = read_events(tmp_path)
    assert len(everything) == 202
    assert total(uses_of("a", found)).gpu == pytest.approx(total(uses_of("a", everything)).gpu)
    assert (tmp_path / run_files.EVENTS).exists()


def test_status_counts_the_hours_of_every_attempt_so_far(tmp_path: Path) -> None:
    run = StudyRun("baseline-seed1-0", "baseline", 1, folder=tmp_path)
    events = [
        event("submitting", 0, attempt=1, token="t"),
        event("started", 0, **GPU),
        event("stopped", 1.0),
        event("submitting", 8, attempt=2, token="u"),
        event("resumed", 9, **GPU),
        event("finished", 9.5),
    ]
    (tmp_path / run_files.EVENTS).write_text("".join(json.dumps({"pid": 1, **e}) + "\n" for e in events))
    (tmp_path / run_files.SUMMARY).write_text('{"iters": 20}')
    states = study_state.collect(Study(tmp_path, "s", "s.yaml", 0.0, {}, [run]))
    assert run_state.total_hours(states) == Hours(gpu=1.5)
    assert run_state.as_record(states, None)["gpu_hours"] == 1.5
    assert status_table.summary_line(states, Scheduler()) == "1 run: 1 done; 1.5 GPU-hours"
