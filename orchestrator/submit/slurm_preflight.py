"""Preflight of the jobs: ask Slurm with `sbatch --test-only` whether it would accept them."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands, helper_jobs, launchers, site_limits
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.study.sbatch_options import NODES, advice, gpus_of_gres, mebibytes
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import queueing
from ablatrix.trainer.rundir.console import complain
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.matrix import Run

TOKEN = "TOKEN"  # placeholder for a submission's token
# reasons that only --test-only gives: sbatch itself queues such a job, which then waits
_WAITS = re.compile(
    r"nodes are busy|[Nn]ode not available|ReqNodeNotAvail|Nodes required for job|[Mm]aintenance|at this time|"
    r"test-only|[Rr]eservation (?:not usable|not yet|is in use|is not active)|partition configuration not available now"
)
_SUBMIT_LIMIT = re.compile(r"(?:Max|Grp)Submit")  # not an error: if not all jobs fit, they are queued in waves


def planned_batches(loaded: Loaded, runs: Sequence[Run], cluster: site_limits.ArrayLimits) -> Iterator[Batch]:
    """Yield the batches that a submit of these runs would queue, with placeholders for token and code."""
    folder, experiment = loaded.experiment.folder, loaded.experiment
    planned = study_dir.study_runs(folder, runs)
    study = Study(folder, experiment.name, loaded.file, 0.0, {}, planned, notify=experiment.notify)
    code = folder.parent / study_dir.SNAPSHOTS / "CODE_SNAPSHOT"
    members = [(run, 1) for run in in_queue_order(study.runs, study.name, lambda run: run)]
    for jobs in queueing.split(members, experiment.slurm, cluster.tasks, cluster.script_bytes):
        yield Batch(study, jobs, TOKEN, experiment.slurm, code, experiment.export)


def check_jobs(loaded: Loaded, runs: Sequence[Run], launcher: str) -> Iterator[str]:
    """Yield why sbatch would refuse the jobs of these runs; warn of what would make them wait.

    Raises ControllerError if Slurm does not answer.
    """
    batch = next(planned_batches(loaded, runs, site_limits.array_limits()), None)
    if batch is None:
        return
    fault = _syntax_fault(batch.settings.setup)
    if fault:
        yield f"{loaded.at('slurm', 'setup')}slurm.setup: {fault}"
    where = f"{loaded.at('slurm')}slurm: "
    try:
        refusal = _test(launchers.make(launcher).script(batch))
    except UserError as error:  # a launcher that cannot be used here
        yield str(error)
        return
    if refusal and _would_wait(refusal, batch.settings):
        cause = ": nodes are down, drained or reserved now" if NODES in refusal else ""
        complain(f"warning: {where}the jobs will have to wait{cause} ({refusal})")
    elif refusal:
        yield f"{where}{refusal}{advice(refusal)}"
    report = "" if refusal else _test(helper_jobs.script(batch, helper_jobs.REPORT))
    if report and not _would_wait(report, SlurmSettings()):
        complain(f"warning: {where}no report job: {report}{advice(report)}; set slurm.helper_jobs: {{partition: cpu}}")


def _test(script: str) -> str:
    """Return why `sbatch --test-only` refuses this script, else ''. Passes a file, as site filters expect one."""
    with tempfile.TemporaryDirectory(prefix="ablatrix-") as folder:
        path = Path(folder) / "job.sbatch"
        path.write_text(script, encoding="utf-8")
        try:
            commands.run_command(["sbatch", "--test-only", str(path)])
        except commands.NoAnswerError:
            raise
        except commands.ControllerError as error:
            return "" if _SUBMIT_LIMIT.search(str(error)) else str(error)
    return ""


def _syntax_fault(lines: Sequence[str]) -> str:
    """Return the syntax error that bash finds in these lines, or ''."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["bash", "-n"], input="\n".join(lines), capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip().partition("\n")[0].removeprefix("bash: ") or "bash cannot read it"
    return ""


def _would_wait(refusal: str, settings: SlurmSettings) -> bool:
    """True if sbatch would queue the job anyway: --test-only considers only the nodes that are usable now."""
    if NODES in refusal:
        return _fits_somewhere(settings)
    if "Invalid time specified" in refusal:
        return "reservation" in settings.extra  # a reservation that begins later
    return bool(_WAITS.search(refusal))


def _fits_somewhere(settings: SlurmSettings) -> bool:
    """True if some nodes are unusable now, and enough nodes are large enough regardless of state."""
    try:
        lines = commands.run_command(["scontrol", "--oneliner", "show", "node"]).splitlines()
    except commands.ControllerError:
        return True
    nodes = [dict(word.partition("=")[::2] for word in line.split()) for line in lines if "NodeName=" in line]
    wanted = set((settings.partition or "").split(",")) - {""}
    nodes = [node for node in nodes if not wanted or wanted & set(node.get("Partitions", "").split(","))]
    if all(_is_usable(node) for node in nodes):
        return False
    return sum(_is_large_enough(node, settings) for node in nodes) >= settings.nodes


def _is_usable(node: Mapping[str, str]) -> bool:
    """True for a node that may start jobs now (IDLE, MIXED+PLANNED; not DOWN*, IDLE+DRAIN, IDLE+MAINTENANCE)."""
    flags = node.get("State", "").rstrip("*~#!%$@^-").split("+")
    good = {"IDLE", "MIXED", "ALLOCATED", "COMPLETING", "PLANNED", "CLOUD", "DYNAMIC_NORM"}
    return set(flags) <= good and not node.get("State", "").endswith("*")


def _is_large_enough(node: Mapping[str, str], settings: SlurmSettings) -> bool:
    feature = settings.constraint or ""
    named = not re.fullmatch(r"[A-Za-z0-9_.-]+", feature) or feature in node.get("AvailableFeatures", "").split(",")
    memory = mebibytes(settings.mem or str(settings.extra.get("mem-per-cpu", "")))
    cpus = settings.cpus_per_task
    return (
        named
        and cpus <= _number(node.get("CPUTot"))
        and memory * (1 if settings.mem else cpus) <= _number(node.get("RealMemory"))
        and settings.gpu_count <= gpus_of_gres(node.get("Gres", ""))
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
