"""`init --site`, with what sinfo, scontrol and sacctmgr print on sites of several kinds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.slurm import site_profile
from ablatrix.orchestrator.slurm.commands import ControllerError
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.verbs.init import SITE, init_site
from ablatrix.trainer.rundir.errors import UserError
from tests.support.shell_stubs import program

# Partitions with GPUs beside the default one, several kinds of nodes, one that is down
UNIVERSITY = """\
cpu*|up|2-00:00:00|40|64|257000|(null)
gpu|up|1-00:00:00|6|64|515000|gpu:a100:4(S:0-1)
gpu|up|1-00:00:00|2|32|191000|gpu:v100:2
gpu-debug|up|30:00|1|64|515000|gpu:a100:4(S:0-1),shard:16
old|down|infinite|8|16|64000|(null)
long|inact|infinite|8|16|64000|(null)
"""
LAB = "CLUSTER: lab\nall*|up|infinite|3|16+|64000+|gpu:2\n"
CPUS = "work*|up|10:00|3|4|8192|(null)\n"


def ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sinfo: str, accounts: str = "", default: str = ""
) -> SlurmSettings:
    """Return the settings of a study that extends the site.yaml of a machine whose commands print these texts."""
    program(folder / "bin/sbatch", "#!/bin/sh\n")
    program(folder / "bin/sinfo", f"#!/bin/sh\ncat <<'END'\n{sinfo}END\n")
    config = "ClusterName = hpc\nSLURM_VERSION = 23.02.7\nMaxArraySize = 1001\n"
    program(folder / "bin/scontrol", f"#!/bin/sh\ncat <<'END'\n{config}END\n")
    answer = f"case $4 in user) printf '{default}\\n';; *) printf '{accounts}\\n';; esac" if accounts else "exit 1"
    program(folder / "bin/sacctmgr", f"#!/bin/sh\n{answer}\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    init_site(folder)
    (folder / "e.yaml").write_text(f"name: s\nextends: {SITE}\nbase: {{data.file_path: x.jsonl}}\n")
    return load_experiment(folder / "e.yaml", []).experiment.slurm


@pytest.mark.parametrize(
    ("sinfo", "expected"),
    [
        (
            UNIVERSITY,
            {
                **{"partition": "gpu", "gpus_per_node": "a100:1", "cpus_per_task": 8, "mem": "32768M"},
                **{"time": "04:00:00", "helper_jobs": {"partition": "cpu"}, "account": None},
            },
        ),
        (LAB, {"partition": "all", "gpus_per_node": 1, "cpus_per_task": 8, "mem": "30400M", "helper_jobs": {}}),
        (CPUS, {"partition": "work", "gpus_per_node": 0, "cpus_per_task": 4, "mem": "7782M", "time": "00:10:00"}),
    ],
)
def test_a_study_that_extends_the_profile_asks_for_a_share_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sinfo: str, expected: dict[str, Any]
) -> None:
    found = ask(tmp_path, monkeypatch, sinfo)
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_account_is_the_default_one_and_the_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ask(tmp_path, monkeypatch, UNIVERSITY, "lab-a\\n007\\nlab-a", "007")
    assert found.account == "007"
    text = (tmp_path / SITE).read_text()
    assert "# your accounts: lab-a, 007\n" in text
    assert "#   cpu*: up to 2-00:00:00; 40 nodes (64 cores, 251 GiB)\n" in text
    assert "6 nodes (64 cores, 503 GiB, 4 x a100), 2 nodes (32 cores, 187 GiB, 2 x v100)\n" in text
    assert "gpus_per_node: a100:1  # leave it out for jobs that need no GPU\n" in text
    assert "cluster hpc (Slurm 23.02.7)" in text and "old" not in text
    with pytest.raises(UserError, match="already exists"):
        init_site(tmp_path)


def test_several_types_in_a_node_are_asked_for_without_a_type() -> None:
    (partition,) = site_profile.parse_sinfo("gpu|up|1:00:00|1|64|515000|gpu:a100:2,gpu:a30:2\n")
    assert (partition.largest.gpus, partition.largest.gpu_type) == (4, "")


def test_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ControllerError, match="no partition that accepts jobs"):
        ask(tmp_path, monkeypatch, "old|down|infinite|8|16|64000|(null)\n")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="login node"):
        init_site(tmp_path)
