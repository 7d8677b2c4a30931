"""Claims: one owner each, taken over from the dead, never from the living."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablatrix.trainer.data.shard_claims import Claims, Owner
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[3]


def test_one_claim_one_owner(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as yours:
        assert mine.acquire("x") and not yours.acquire("x", take_over=True)
        assert f"(process {os.getpid()})" in yours.describe_owner("x")
        mine.release("x")
        assert yours.acquire("x")
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from ablatrix.trainer.data.shard_claims import Claims, Owner; "
    code += "print(Claims(Path(sys.argv[1])).acquire('x'), flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"True\n"
    with Claims(tmp_path) as claims:
        assert not claims.acquire("x", take_over=True)
        owner.kill()
        owner.wait()
        assert not claims.acquire("x")
        assert claims.acquire("x", take_over=True)


@pytest.mark.parametrize("beats", [True, False])
def test_the_claim_of_another_host_is_taken_when_its_heart_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    clock = itertools.count(step=10.0)
    monkeypatch.setattr("ablatrix.trainer.data.shard_claims.time.monotonic", lambda: next(clock))
    with Claims(tmp_path, stale=60.0) as claims:
        taken = False
        for beat in range(12):
            if beats or beat == 0:
                owner = Owner(host="far", pid=1, born="1", token="other", beat=beat)
                (tmp_path / "x").write_text(owner.model_dump_json())
            taken = taken or claims.acquire("x", take_over=True)
        assert taken is not beats


def test_a_claim_without_an_owner_becomes_stale(tmp_path: Path) -> None:
    """An empty file is left by a kill between making and writing it."""
    (tmp_path / "x").touch()
    with Claims(tmp_path, stale=0.0) as claims:
        assert not claims.acquire("x", take_over=True)
        assert claims.acquire("x", take_over=True)


def test_a_claim_that_was_taken_over_is_not_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.01) as slow, Claims(tmp_path) as quick:
        assert slow.acquire("x")
        assert quick._bury("x") and quick.acquire("x")  # as if the first had sent no heartbeat for too long
        time.sleep(0.05)
        slow.release("x")
        assert not slow.acquire("x") and quick._is_mine("x")


def test_many_processes_one_winner(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ablatrix.trainer.data.shard_claims import Claims, Owner; "
        "sys.stdin.readline(); "
        "claims = Claims(Path(sys.argv[1])); print(sum(claims.acquire(str(k)) for k in range(200)), flush=True); "
        "sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(racer.stdout.readline()) for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.communicate("end\n")
    assert sum(won) == 200


def test_holders_show_that_they_live(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.02) as claims:
        assert claims.acquire("x")
        seen: set[bytes] = set()
        wait_for(lambda: seen.add((tmp_path / "x").read_bytes()) or len(seen) > 3)
