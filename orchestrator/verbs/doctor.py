"""The verb `doctor`: check this machine and print, a line per check, what Ablatrix finds and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.store import shared_fs
from ablatrix.orchestrator.submit.devices import find_devices
from ablatrix.orchestrator.terminal import printing, tables
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.data import tokenizer, weights_source
from ablatrix.trainer.data.manifest import read_manifest
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from rich.console import Console

OK, WARNING, FAULT = "ok", "warning", "fault"
LOW_BYTES, LOW_INODES = 10 << 30, 10_000  # free space below which a small study may not fit
CLOCK_SKEW = 5  # tolerated seconds
TORCH = "import torch; print(torch.__version__, torch.cuda.device_count(), torch.cuda.is_bf16_supported())"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check. advice: what to do, "" if nothing."""

    check: str
    state: str
    found: str
    advice: str = ""


def doctor(output: Path, console: Console, *, as_json: bool) -> int:
    """Run every check, print the findings as a table or as JSON, and return the exit code, 1 if there is a fault."""
    machine = [_check_python(), _check_torch(), _check_slurm(), _check_cache()]
    findings = [*machine, _check_disk(output), _check_clock(output)]
    rows = [asdict(finding) for finding in findings]
    if as_json:
        printing.print_json(rows)
    else:
        tables.print_table("this machine", rows, console, tables.Layout(wrapped=("found", "advice"), below="advice"))
    return int(any(finding.state == FAULT for finding in findings))


def _check_python() -> Finding:
    return Finding("Python", OK, f"{platform.python_version()} ({sys.executable})")


def _check_torch() -> Finding:
    """Import torch in a separate process, as a job does, and compare its GPUs with the machine's."""
    gpus = find_devices(None)
    try:
        shown = subprocess.run([sys.executable, "-P", "-c", TORCH], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("PyTorch", FAULT, f"does not start: {error}", "install it again: see the README")
    if shown.returncode:
        last = (shown.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("PyTorch", FAULT, f"import failed: {last}", "install it again: see the README")
    version, seen, bf16 = shown.stdout.split()
    if gpus and seen == "0":
        advice = "install the CUDA build: make TORCH=cuda, or pip with requirements-cuda.txt"
        return Finding("PyTorch", WARNING, f"{version} sees none of {count(len(gpus), 'GPU')}", advice)
    precision = ", bfloat16" if bf16 == "True" else ""
    devices = "CPU only" if seen == "0" else f"{count(int(seen), 'GPU')}{precision}"
    return Finding("PyTorch", OK, f"{version}, {devices}")


def _check_slurm() -> Finding:
    if not commands.belongs_to_cluster():
        installed = ": its commands are installed, but there is no slurm.conf" if commands.available() else ""
        return Finding("Slurm", OK, f"none{installed}; studies run on this machine")
    try:
        settings = commands.settings()
    except AblatrixError as error:
        return Finding("Slurm", FAULT, str(error), "ask whether the controller is down")
    books = settings.get("AccountingStorageType", "")
    accounting = "no accounting" if books in ("", "(null)", "accounting_storage/none") else "accounting"
    found = (
        f"{settings.get('SLURM_VERSION', '')} on {settings.get('ClusterName', '?')}, {accounting}, "
        f"arrays of {settings.get('MaxArraySize', '?')}"
    )
    return Finding("Slurm", OK, found.strip())


def _check_cache() -> Finding:
    """Check that every tokenizer in the offline cache is complete and no weights file in it is truncated."""
    cache = Path(RunConfig().system.cache_dir)
    warm = f"on a machine with internet: {program()} warm-cache"
    try:
        manifest = read_manifest(cache)
        names = sorted(manifest.tokenizers)
        for name in names:
            tokenizer.verify(tokenizer.find(name, cache))
        for name in manifest.models:
            weights_source.find_source(name, cache)
    except AblatrixError as error:
        return Finding("offline cache", FAULT, str(error))
    if not names:
        return Finding("offline cache", WARNING, f"{cache} has no tokenizer", warm)
    weights = f"; weights of {', '.join(sorted(manifest.models))}" if manifest.models else ""
    return Finding("offline cache", OK, f"{cache}: {', '.join(names)}{weights}")


def _check_disk(output: Path) -> Finding:
    """Check the free space of the studies' folder; a quota is shown only if the command `quota` reports it."""
    folder = shared_fs.nearest_existing(output)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", FAULT, f"{folder} is not writable", "choose another `output:`")
    space = os.statvfs(folder)
    free, inodes = space.f_bavail * space.f_frsize, space.f_favail
    kind = shared_fs.file_system(folder) or "unknown file system"
    found = f"{folder} ({kind}): {free / 1e9:.0f} GB free"
    few = inodes < LOW_INODES and space.f_files > 0
    quota = "; see also `quota -s`" if shutil.which("quota") else ""
    if free < LOW_BYTES or few:
        return Finding("disk", WARNING, f"{found}, {inodes} inodes", f"choose another `output:` or free some{quota}")
    return Finding("disk", OK, found, quota.removeprefix("; "))


def _check_clock(output: Path) -> Finding:
    """Compare this machine's clock with the clock of the machine that stores the studies."""
    skew = shared_fs.now(shared_fs.nearest_existing(output)) - time.time()
    if abs(skew) > CLOCK_SKEW:
        advice = "states are not affected, times in logs are; have it synchronized (NTP)"
        return Finding("clock", WARNING, f"{skew:+.0f} s off the file server's", advice)
    return Finding("clock", OK, "agrees with the file system's")
