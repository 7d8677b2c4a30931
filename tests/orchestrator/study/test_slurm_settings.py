"""The `slurm:` section as people write it: what sbatch gets, the same under both launchers, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.slurm import commands, helper_jobs, job_parsing
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher, sbatch_options
from ablatrix.orchestrator.slurm.submitit import SubmititLauncher
from ablatrix.orchestrator.status import cost
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import queueing
from ablatrix.trainer.rundir.errors import UserError
from tests.support import shell_stubs
from tests.support.batches import make_batch

DEFAULTS = {"cpus-per-task": 1, "time": "01:00:00"}


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("{extra: {exclusive: true, hold: false, contiguous: null}}", {"exclusive": True}),
        ("{extra: {exclusive: yes, overcommit: on}}", {"exclusive": True, "overcommit": True}),
        ("{extra: {exclusive: user}}", {"exclusive": "user"}),
        (
            "{extra: {p: gpu, A: x, C: a100, q: high}}",
            {"partition": "gpu", "account": "x", "constraint": "a100", "qos": "high"},
        ),
        ("{extra: {c: 4, t: '4:00:00', x: [n1, n2]}}", {"cpus-per-task": 4, "time": "4:00:00", "exclude": "n1,n2"}),
        ("{extra: {-w: n1, --mail-user: a@b.c, mail_type: [END, FAIL]}}", None),
        ("{gpus_per_node: 'a100:2'}", {"gpus-per-node": "a100:2"}),
        ("{gpus_per_node: 'gpu:a100:2'}", {"gpus-per-node": "a100:2"}),
        ("{gpus_per_node: '2'}", {"gpus-per-node": 2}),
        ("{extra: {gres: 'gpu:a100:2'}}", {"gres": "gpu:a100:2"}),
        (
            "{account: 12345, qos: 1, mem: 16000, time: 60}",
            {"account": "12345", "qos": "1", "mem": "16000", "time": "60"},
        ),
        (
            "{time: 4:00:00, extra: {nice: 100, mem-per-cpu: 4GB}}",
            {"time": "4:00:00", "nice": "100", "mem-per-cpu": "4G"},
        ),
        ("{mem: 16GB}", {"mem": "16G"}),
        ("{setup: , extra: , partition: , cpus_per_task: '2'}", {"cpus-per-task": 2}),
        ("{account: 0123}", {"account": "0123"}),
        ("{mem: 16 GiB}", {"mem": "16G"}),
        ("{mem: 1.5G}", {"mem": "1536M"}),
        ("{clusters: beta}", {"clusters": "beta"}),
        ("{extra: {M: beta}}", {"clusters": "beta"}),
        ("{nodes: '2', extra: {G: 4}}", {"gpus": "4"}),
    ],
)
def test_what_sbatch_gets(tmp_path: Path, section: str, options: dict[str, Any] | None) -> None:
    expected = options or {"nodelist": "n1", "mail-user": "a@b.c", "mail-type": "END,FAIL"}
    assert sbatch_options(load(tmp_path, section)) == {**DEFAULTS, **expected}


def load(folder: Path, section: str) -> SlurmSettings:
    path = folder / "study.yaml"
    path.write_text(f"name: s\nbase: {{}}\nfeatures: {{rope: {{model.rope: true}}}}\nslurm: {section}\n")
    return load_experiment(path).experiment.slurm


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{extra: {output: x}}", "logs go to the study's folder"),
        ("{extra: {o: x}}", "logs go to the study's folder"),
        ("{extra: {outp: x}}", "sbatch would read it as --output"),
        ("{extra: {array: 1-3}}", "slurm.max_parallel"),
        ("{extra: {J: mine}}", "it is the study's name"),
        ("{extra: {dependency: 'afterok:1'}}", "set by Ablatrix itself"),
        ("{extra: {wait: true}}", "use `submit --wait`"),
        ("{extra: {test-only: true}}", "nothing would be queued"),
        ("{extra: {n: 4}}", "slurm.processes_per_node"),
        ("{extra: {quiet: true}}", "the job's id is read from what sbatch prints"),
        ("{extra: {wrap: ls}}", "set by Ablatrix itself"),
        ("{partition: a, extra: {partition: b}}", "given as slurm.partition too; keep one"),
        ("{partition: a, extra: {p: b}}", "given as slurm.partition too; keep one"),
        ("{extra: {w: n1, nodelist: n2}}", "w and nodelist are the same option"),
        ("{extra: {contiguous: 3}}", "contiguous takes no value"),
        ("{extra: {reservation: true}}", "reservation needs a value"),
        ("{extra: {clusters: 'a,b'}}", "must be one cluster"),
        ("{clusters: all}", "must be one cluster"),
        ("{gpus_per_node: 1, extra: {gres: 'gpu:1'}}", "both ask for GPUs; keep one"),
        ("{gpus_per_node: two}", None),
        ("{gpus_per_node: true}", "must be a number of GPUs"),
        ("{account: true}", "write it in quotes"),
        ("{account: 1.10}", "write it in quotes"),
        ("{mem: 1.5}", "no unit; write it"),
        ("{mem: plenty}", "not an amount of memory"),
        ("{reservation: x}", "go under slurm.extra"),
        ("{exclusive: true}", "go under slurm.extra"),
        ("{p: gpu}", "did you mean partition?"),
        ("{ntasks: 4}", "set by Ablatrix itself: one task starts on each node"),
        ("{clusters: [a, b]}", "must be one cluster"),
        ('{comment: "a\\nb"}', "must be one line"),
        ('{comment: "ablatrix:0123456789abcdef"}', "marks the jobs of Ablatrix"),
        ('{extra: {nodelist: "n1\\ntouch x"}}', "not safe in an sbatch option"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, section: str, says: str | None) -> None:
    if says is None:  # the name of a type of GPU
        assert load(tmp_path, section).gpu_count == 1
        return
    with pytest.raises(UserError) as error:
        load(tmp_path, section)
    assert says in str(error.value)
    assert "study.yaml:4: slurm" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"extra": {"exclusive": True, "constraint": "[rack1*2&rack2]", "licenses": "matlab:2"}},
        {"gpus_per_node": "a100:2", "mem": "16GB", "time": "1-00:00:00"},
        {"comment": "project x", "requeue": False},
        {"comment": '{"exempt": "60"}', "clusters": "beta"},
    ],
)
def test_both_launchers_give_the_same_options(home: Path, given: dict[str, Any]) -> None:
    settings = SlurmSettings(**given)
    batch = make_batch(home, settings)
    scripts = [launcher.script(batch) for launcher in (SbatchLauncher(), SubmititLauncher())]
    asked = {**sbatch_options(settings), "comment": job_parsing.comment(batch.token, settings.comment)}
    expected = {f"--{name}" if value is True else f"--{name}={value}" for name, value in asked.items()}
    for script in scripts:
        options = shell_stubs.sbatch_options(script)
        assert expected <= set(options)
        assert ("--requeue" in options, "--no-requeue" in options) == (settings.requeue, not settings.requeue)
        assert not [word for word in options if "wckey" in word]
    report = shell_stubs.sbatch_options(helper_jobs.script(batch, helper_jobs.REPORT))
    assert [word for word in report if word.startswith("--clusters")] == (
        [f"--clusters={settings.clusters}"] if settings.clusters else []
    )


@pytest.mark.parametrize(
    "site", [None, "project x", '{"OccupiedIdleGPUsJobReaper": {"exemptIdleTimeMins": "60"}}', "7"]
)
def test_the_token_stands_beside_a_sites_comment(site: str | None) -> None:
    comment = job_parsing.comment("0123456789abcdef", site)
    assert job_parsing.Job("1", "PENDING", comment=comment).token == "0123456789abcdef"
    assert (site or "").rstrip("}") in comment


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, 0),
        ({"gpus_per_node": 2}, 2),
        ({"gpus_per_node": "a100:2,v100"}, 3),
        ({"extra": {"gres": "gpu"}}, 1),
        ({"extra": {"gres": "tmpfs:10G,gpu:a100:2(S:0-1)"}}, 2),
        ({"extra": {"tres-per-node": "gres/gpu:4"}}, 4),
        ({"nodes": 2, "extra": {"gpus": 4}}, 2),
        ({"nodes": 2, "extra": {"gpus-per-task": "h100:3"}}, 3),
        ({"extra": {"gres": "tmpfs:10G"}}, 0),
    ],
)
def test_gpus_are_counted_however_they_are_asked_for(given: dict[str, Any], gpus: int) -> None:
    settings = SlurmSettings(**given)
    assert settings.gpu_count == gpus
    assert settings.layout.processes == max(1, gpus)


def test_the_budget_counts_typed_gpus(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: s\nbase: {}\nfeatures: {}\ndesign: [baseline]\nslurm: {extra: {gres: 'gpu:2'}}\n")
    assert cost.describe(load_experiment(path).experiment, [], {}).endswith("0 GPU-hours")


@pytest.mark.parametrize(
    ("refusal", "todo"),
    [
        ("sbatch: error: You must specify a comment with --comment=project", "; set slurm.comment"),
        ("sbatch: error: Requeue of jobs is not allowed on this cluster", "; set slurm.requeue: false"),
        ("sbatch: error: Batch job submission failed: Socket timed out", ""),
    ],
)
def test_a_refusal_names_the_setting_and_sbatch_once(
    refusal: str, todo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(commands.ControllerError) as refused:
        commands.run_command(["sbatch", "job"])
    assert str(queueing.RefusedError(refused.value)) == refusal + todo
