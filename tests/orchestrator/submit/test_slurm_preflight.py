"""Answers of a real Slurm 22.05 to --test-only: an error only where sbatch refuses the job too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import slurm_preflight
from tests.support import shell_stubs
from tests.support.fake_slurm import write_commands

NODE = "NodeName={} CPUTot=4 RealMemory=8192 AvailableFeatures=a100 Gres=gpu:a100:2(S:0-1) State={} Partitions=main,gpu"
UNAVAILABLE = "allocation failure: Requested node configuration is not available"


def study(folder: Path, settings: str = "{}") -> Loaded:
    path = folder / "study.yaml"
    shared = ", trainer.strategy: ddp, trainer.batch_size: 12" if "nodes" in settings else ""
    base = f"base: {{data.file_path: a.jsonl{shared}}}"
    path.write_text(f"name: s\n{base}\nfeatures: {{rope: {{model.rope: true}}}}\nslurm: {settings}\n")
    return load_experiment(path)


def findings(loaded: Loaded, launcher: str = "sbatch") -> list[str]:
    return list(slurm_preflight.check_jobs(loaded, matrix.runs(loaded, lambda config: (50257, None)), launcher))


@pytest.fixture
def site(home: Path) -> Path:
    """Folder of the site's commands; the file `refusal` holds why its sbatch --test-only refuses a job."""
    write_commands(
        home.parent / "bin",
        sbatch='for script; do :; done; cp "$script" "$0.script"\n'
        '[ ! -s "$0.refusal" ] || { cat "$0.refusal" >&2; exit 1; }',
        scontrol='case "$*" in *node) cat "$0.nodes" ;; *) echo "MaxArraySize = 1001" ;; esac',
    )
    (home.parent / "bin/scontrol.nodes").write_text(
        f"{NODE.format('n1', 'IDLE')}\n{NODE.format('n2', 'MIXED+PLANNED')}\n"
    )
    return home.parent / "bin"


def answer(site: Path, text: str, states: tuple[str, str] = ("IDLE", "MIXED+PLANNED")) -> None:
    (site / "sbatch.refusal").write_text(text)
    nodes = [NODE.format(f"n{i}", state) for i, state in enumerate(states)]
    (site / "scontrol.nodes").write_text("\n".join(nodes) + "\n")


@pytest.mark.parametrize("launcher", ["sbatch", "submitit"])
def test_slurm_is_asked_about_the_very_script(site: Path, home: Path, launcher: str) -> None:
    loaded = study(home, "{comment: project-x, requeue: false, extra: {exclusive: true}}")
    assert findings(loaded, launcher) == []
    answer(site, "refused")
    findings(loaded, launcher)  # the report's script is not asked about then: this is the runs'
    options = shell_stubs.sbatch_options((site / "sbatch.script").read_text())
    wanted = {"--job-name=s", "--no-requeue", "--exclusive", "--comment=project-x ablatrix:TOKEN", "--signal=USR2@120"}
    assert wanted <= set(options)
    assert [word for word in options if word.startswith("--array=0-1")]


@pytest.mark.parametrize(
    "refusal",
    [
        "allocation failure: Invalid partition name specified",
        "allocation failure: Invalid account or account/partition combination specified",
        "allocation failure: Invalid qos specification",
        "allocation failure: Requested time limit is invalid (missing or exceeds some limit)",
        "allocation failure: Invalid feature specification",
        "sbatch: error: QOSMaxWallDurationPerJobLimit allocation failure: Job violates accounting/QOS policy",
        "allocation failure: Required partition not available (inactive or drain)",
        "sbatch: unrecognized option '--foo=1'",
        UNAVAILABLE,
        "allocation failure: Invalid time specified",
    ],
)
def test_what_sbatch_would_refuse_too(site: Path, home: Path, refusal: str) -> None:
    answer(site, refusal)
    (found,) = findings(study(home))
    assert "study.yaml:4: slurm: sbatch: " in found
    assert refusal.split(": ")[-1] in found
    assert ("sinfo -s" in found) == ("Invalid partition" in refusal)


@pytest.mark.parametrize(
    "state", ["IDLE+DRAIN", "DOWN*", "IDLE+MAINTENANCE+RESERVED", "DOWN+DRAIN", "IDLE*", "POWERED_DOWN"]
)
def test_nodes_that_cannot_be_used_now_make_jobs_wait(
    site: Path, home: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    answer(site, UNAVAILABLE, (state, "IDLE"))
    assert (
        findings(study(home, "{mem: 8G, cpus_per_task: 4, gpus_per_node: 'a100:2', nodes: 2, constraint: a100}")) == []
    )
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        "{mem: 9G}", "{cpus_per_task: 5}", "{gpus_per_node: 3}", "{nodes: 3}", "{constraint: h100}", "{partition: cpu}",
        "{cpus_per_task: 4, extra: {mem-per-cpu: 4G}}", "{extra: {gres: 'gpu:a100:4'}}",
    ],
)  # fmt: skip
def test_what_no_node_can_ever_satisfy_is_refused_though_nodes_are_drained(
    site: Path, home: Path, settings: str
) -> None:
    answer(site, UNAVAILABLE, ("IDLE+DRAIN", "DOWN*"))
    assert len(findings(study(home, settings))) == 1


@pytest.mark.parametrize(
    ("refusal", "settings"),
    [
        ("allocation failure: Invalid time specified", "{extra: {reservation: later}}"),
        ("allocation failure: Requested nodes are busy", "{}"),
        ("allocation failure: Required node not available (down, drained or reserved)", "{}"),
    ],
)
def test_what_only_has_to_wait(
    site: Path, home: Path, capsys: pytest.CaptureFixture[str], refusal: str, settings: str
) -> None:
    answer(site, refusal)
    assert findings(study(home, settings)) == []
    assert "the jobs will have to wait" in capsys.readouterr().err


def test_a_limit_of_jobs_in_the_queue_is_left_to_the_waves(site: Path, home: Path) -> None:
    answer(site, "sbatch: error: QOSMaxSubmitJobPerUserLimit allocation failure: Job violates accounting/QOS policy")
    assert findings(study(home)) == []


def test_a_site_that_wants_a_comment_or_no_requeue_is_answered_with_the_setting(site: Path, home: Path) -> None:
    answer(site, "sbatch: error: a comment with your project is required")
    assert "set slurm.comment" in findings(study(home))[0]
    answer(site, "sbatch: error: Requeue of jobs is not allowed on this cluster")
    assert "set slurm.requeue: false" in findings(study(home))[0]


def test_a_silent_controller_is_no_fault_of_the_file(site: Path, home: Path) -> None:
    answer(site, "sbatch: error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(commands.NoAnswerError) as error:
        findings(study(home))
    assert error.value.exit_code == 1


@pytest.mark.parametrize("line", ["echo 'open", "module load cuda &&", "if true; then", "for x in a; do echo $x"])
def test_setup_lines_that_bash_cannot_read(site: Path, home: Path, line: str) -> None:
    (found,) = findings(study(home, json.dumps({"setup": ["module load gcc", line]})))
    assert "study.yaml:4: slurm.setup: line " in found


def test_setup_lines_that_bash_can_read(site: Path, home: Path) -> None:
    lines = ["module load cuda || exit 1", "source ~/.bashrc; conda activate x", "cat <<X\n'\nX", "trailing \\"]
    assert findings(study(home, json.dumps({"setup": lines}))) == []
