"""Several users in one scratch folder: caches are shared, studies belong to their user, nothing waits forever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.support.evidence import Tally
from tests.support.waiting import PATIENCE
from tests.trust.two_users import ALICE, BOB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users"),
    pytest.mark.xdist_group("two users"),
]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(offline_cache: Path, corpus: Path) -> Iterator[Found]:
    """What became of each scenario; in a folder that every user can reach, which pytest's own is not."""
    scratch = Path(tempfile.mkdtemp(prefix="ablatrix-two-users-"))
    try:
        scratch.chmod(0o755)
        command = [sys.executable, "-m", "tests.trust.two_users", scratch, offline_cache, corpus]
        environ = {**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert result.returncode == 0, result.stderr
        yield dict(map(json.loads, result.stdout.splitlines()))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def values(outcomes: dict[str, Any], *names: str) -> list[Any]:
    """What these came to; fails where one of them did not end well."""
    assert all("value" in outcomes[name] for name in names), [outcomes[name] for name in names]
    return [outcomes[name]["value"] for name in names]


def test_a_cache_that_another_user_has_warmed(found: Found, tally: Tally) -> None:
    outcomes = found["shared cache"]
    built, read = values(outcomes, "alice", "bob")
    first, second = values(outcomes, "first", "second")
    assert built == read
    assert first == second
    assert len(first) == 4
    assert outcomes["unchanged"]
    tally("a cache warmed by one user serves another, who writes nothing there", 2, "equal loss.csv")


def test_a_cache_that_two_users_of_a_group_build_at_once(found: Found, tally: Tally) -> None:
    outcomes = found["built at once"]
    alice, bob = values(outcomes, "alice", "bob")
    assert alice == bob == values(found["shared cache"], "alice")[0]
    assert outcomes["modes"] == ["0o664"]
    tally("two users of a group build one token cache at once", 2, "equal to one's; files 664")


def test_a_cache_that_another_user_has_left_unfinished(found: Found, tally: Tally) -> None:
    outcomes = found["left unfinished"]
    bob, alice = values(outcomes, "bob", "alice again")
    assert bob == alice
    assert outcomes["owners"] == [ALICE, BOB]
    tally("beside another user's unfinished build a user makes an own one", 1)


def test_a_claim_that_another_user_has_left(found: Found, tally: Tally) -> None:
    (sticky,), (group,) = (values(found[f"stale claim, {kind}"], "bob") for kind in ("sticky", "group"))
    assert f".manifest.claim: left by user {ALICE}" in sticky
    assert group == "entered"
    tally("another user's dead claim is taken over or named, never waited for", 2)


def test_studies_of_two_users_in_one_folder(found: Found, tally: Tally) -> None:
    outcomes = found["studies"]
    alice, bob = values(outcomes, "alice", "bob")
    assert "queued 2 runs" in alice["out"], alice
    assert "queued 2 runs" in bob["out"], bob
    assert values(outcomes, "trained") == [0]
    assert outcomes["owners"] == {
        "ours": ALICE, "theirs": BOB, ".last": ALICE, f".last-{BOB}": BOB, ".snapshots": ALICE, f".snapshots-{BOB}": BOB
    }  # fmt: skip
    for name, own in (("alice's last", "out/ours/"), ("bob's last", "out/theirs/")):
        (shown,) = values(outcomes, name)
        assert own in shown["out"], shown

    looked, shown, reported, cancelled, submitted, rerun = [
        outcomes[name]["value"] for name in outcomes if name.startswith("bob: ")
    ]
    assert looked["code"] == shown["code"] == 0
    assert "done" in looked["out"]
    assert "nothing to cancel" in cancelled["out"]
    assert reported["code"] == 1
    assert "cannot write the report to out/ours/report: Permission denied" in reported["err"]
    for refused in (submitted, rerun):
        assert refused["code"] == 2
        assert f"out/ours: owned by user {ALICE}; give the study another name" in refused["err"]
    assert all(len(shown["err"].splitlines()) <= 1 for shown in (looked, reported, cancelled, submitted, rerun))
    assert outcomes["unchanged"], "somebody else's study was changed"
    assert values(outcomes, "alice's report")[0]["code"] == 0
    for private in values(outcomes, "private file", "private folder"):
        assert private["code"] == 2
        assert "cannot read out/ours/study.json: Permission denied; ask" in private["err"]
    tally("two users' studies in one sticky folder do not touch each other", 8, "another's can be looked at")
