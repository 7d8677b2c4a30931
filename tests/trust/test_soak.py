"""Runs through a real Slurm under a fault every few seconds: `make soak` with 1,000 of them, a small one in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import alone, cluster  # noqa: F401 - fixtures
from tests.support.evidence import Tally
from tests.support.workspace import Workspace
from tests.trust.soak import CELLS, STUDIES, Findings, Soak
from tests.trust.soak_faults import KINDS, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm-3")]

FEW = 20  # runs of the soak in CI: a minute or two on two cores that other tests share
PER_SEED = CELLS * len(STUDIES)


@pytest.fixture
def soak(cluster: str, workspace: Workspace, seed: int, request: pytest.FixtureRequest) -> Iterator[Soak]:  # noqa: F811
    lab = Path(os.environ.get("SLURM_LAB", "/tmp/slurm-lab"))
    if os.geteuid() or not (lab / ".slurm-lab").exists():
        pytest.skip("kills daemons: only with the test cluster, as root (tests/slurm/cluster up)")
    runs = request.config.getoption("--soak") or FEW
    # Few faults that come fast: on a machine where a submit takes longer than a fault, nothing would ever be done
    pace, most = (10.0, 10**6) if runs >= 1000 else (3.0, runs * 3 // 5)
    soak = Soak(workspace, Cluster(cluster, lab, workspace.env()), max(1, runs // PER_SEED), pace, most, seed)
    yield soak
    for name in STUDIES:
        workspace.run("cancel", "--all", "--yes", "--study", name, code=None)
    soak.close()


def test_soak(soak: Soak, tally: Tally) -> None:
    """Whatever happens to jobs, daemons and disk: each run ends with its result, once, and `status` does not lie."""
    found = soak.run(limit=1800 if soak.findings.runs <= FEW else 5400)
    _write_down(found, tally)
    shown = soak.faults.diary.read_text()[-30_000:]
    assert not found.lost, f"{found.lost[:20]}\n{shown}"
    assert not found.wrong, f"{found.wrong[:20]}\n{shown}"
    assert not found.left, f"{found.left[:20]}\n{shown}"
    assert not found.untrue, f"{found.untrue[:20]}\n{shown}"
    wanted = set(KINDS) if soak.disk else set(KINDS) - {"disk"}
    assert wanted <= found.faults.keys(), f"{found.faults}\n{shown}"
    assert found.looks >= found.runs // 10


def _write_down(found: Findings, tally: Tally) -> None:
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(found.faults.items()))
    lost = f"{len(found.lost)} lost, {found.submits} submits in {found.seconds:.0f} s; {found.faults.total()} faults"
    tally("soak: every run ends with its result", cases=found.runs, detail=f"{lost}: {faults}")
    tally(
        "soak: each step once, as in an undisturbed run",
        cases=found.runs,
        detail=f"{len(found.wrong)} runs with others",
    )
    tally("soak: no job, process or temporary file is left", cases=found.runs, detail=f"{len(found.left)} left")
    tally("soak: status says what is true", cases=found.looks, detail=f"{len(found.untrue)} false states")
