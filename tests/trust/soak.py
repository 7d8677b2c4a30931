"""Many short runs through a real Slurm, under faults, until all are done: what is lost, doubled, left over or untrue?

Three at once: a user who submits again whatever was cancelled or has failed, `Faults`, and somebody who looks at the
state at random moments.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.faults.actions import train
from tests.faults.nursery import Nursery
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace, without_clock
from tests.trust import soak_truth
from tests.trust.soak_faults import Cluster, Disk, Faults
from tests.trust.soak_truth import Truth

STUDY = """\
name: {name}
base:
  data: {{file_path: {corpus}, tokenizer: sample, block_size: 8, test_size: 6}}
  model: {{model_type: null, n_layer: 1, n_head: 2, n_embd: 8}}
  trainer: {{max_iters: 20, batch_size: 2, learning_rate: 3e-3, log_interval: 2, eval_interval: 10, eval_tokens: 200,
            ckpt_interval: 5}}
  system: {{cache_dir: {cache}}}
features:
  swiglu: {{model.swiglu: true}}
  rmsnorm: {{model.rmsnorm: true}}
  rope: {{model.rope: true}}
seeds: {seeds}
slurm: {{time: "00:10:00", mem: 1G, cpus_per_task: {together}, runs_per_job: {together}, max_parallel: {parallel}}}
"""
CELLS = 5
# The same configurations twice, so that each run has a twin: one run to a job, and two that share one
STUDIES = {"sbatch": 1, "submitit": 2}  # launcher -> runs_per_job
# A submit that was killed holds its claims for so long; shorter than for users, who do not wait for the soak's end
SHORT_CLAIMS = {"ABLATRIX_CLAIM_SECONDS": "40", "ABLATRIX_SBATCH_TIMEOUT": "15"}
ENDING_SECONDS = 10.0  # that a process may take to end after its last word
STRAY = (".*.tmp", ".now.*", ".job.*")


@dataclass
class Findings:
    """What a soak counts."""

    runs: int
    faults: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    submits: int = 0
    seconds: float = 0.0
    untrue: list[str] = field(default_factory=list)  # what `status` said, against the truth
    lost: list[str] = field(default_factory=list)  # runs without a result
    wrong: list[str] = field(default_factory=list)  # rows twice, missing, or other than those of an undisturbed run
    left: list[str] = field(default_factory=list)  # jobs, processes, files


class Soak:
    """`run` it once; the findings are then complete."""

    def __init__(self, workspace: Workspace, cluster: Cluster, seeds: int, pace: float, most: int, seed: int) -> None:
        self.workspace, self.cluster, self.seeds = workspace, cluster, seeds
        workspace.environment.update(SHORT_CLAIMS)
        self.out = workspace.folder / "out"
        disk = Disk(self.out)
        self.disk = disk if disk.attach() else None
        self.faults = Faults(cluster, self.disk, self.out, pace, most, seed)
        self.random = random.Random(f"looks {seed}")
        self.findings = Findings(len(STUDIES) * CELLS * seeds)
        self._submits: list[tuple[float, float]] = []  # beginning and end of each
        self._over = threading.Event()

    def run(self, limit: float) -> Findings:
        """Until all runs are done, at most `limit` seconds; then all is compared."""
        began = time.monotonic()
        looker = threading.Thread(target=self._look_now_and_then, daemon=True)
        for launcher in STUDIES:
            self._submit(launcher)
        looker.start()
        self.faults.start()
        try:
            while not self._all_done() and time.monotonic() - began < limit:
                time.sleep(6 + self.findings.runs / 60)
                for launcher in STUDIES:
                    if self._done(launcher) < CELLS * self.seeds:
                        self._submit(launcher)
        finally:
            self._over.set()
            looker.join()
            self.faults.stop()
        for launcher in STUDIES:  # jobs of finished runs that Slurm holds after a failed start are let go by it
            self._submit(launcher)
        self.findings.faults = self.faults.counts
        self.findings.seconds = time.monotonic() - began
        for check in (self._count_lost, self._count_left, self._compare, self._against_undisturbed):
            check()
            self.faults.note(f"{check.__name__}: {time.monotonic() - began:.0f} s")
        return self.findings

    def close(self) -> None:
        if self.disk:
            self.disk.detach()

    def folders(self, launcher: str) -> list[Path]:
        """Of the runs; empty before the first submit that could make them."""
        return sorted(path for path in (self.out / launcher).glob("*-seed*-*") if path.is_dir())

    def _done(self, launcher: str) -> int:
        return sum((folder / run_files.SUMMARY).exists() for folder in self.folders(launcher))

    def _all_done(self) -> bool:
        return sum(map(self._done, STUDIES)) == self.findings.runs

    # ---- the user

    def _submit(self, launcher: str) -> None:
        """`submit --retry`: what failed, was cancelled or got lost is queued again."""
        values = {"corpus": self.workspace.corpus, "cache": self.workspace.cache, "seeds": self.seeds, "parallel": 4}
        path = self.workspace.folder / f"{launcher}.yaml"
        path.write_text(STUDY.format(name=launcher, together=STUDIES[launcher], **values))
        words = ("submit", path, "--launcher", launcher, "--retry", "--no-report")
        began = time.monotonic()
        self._submits.append((began, float("inf")))
        with subprocess.Popen(
            self.workspace.command(*words), cwd=self.workspace.folder, env=self.workspace.env(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            self.faults.submit = process
            said, complaint = process.communicate(timeout=PATIENCE)
            self.faults.submit = None
        self._submits[-1] = (began, time.monotonic())
        self.findings.submits += 1
        self.faults.note(f"submit {launcher}: {process.returncode} {' | '.join((said + complaint).split(chr(10)))}")
        if "Traceback" in complaint:
            self.findings.untrue.append(f"submit: {complaint[-2000:]}")

    # ---- somebody who looks

    def _look_now_and_then(self) -> None:
        while not self._over.wait(self.random.expovariate(1 / (2.5 + self.findings.runs / 250))):
            launcher = self.random.choice(sorted(STUDIES))
            self.look(launcher)

    def look(self, launcher: str) -> None:
        """What `status` says of each run, against the truth just before and just after."""
        if not (self.out / launcher / "study.json").exists():
            return
        folders = self.folders(launcher)
        began = time.monotonic()
        before = Truth.now(folders, self.workspace.env())
        answer = self.workspace.run("status", launcher, "--json", code=None)
        after = Truth.now(folders, self.workspace.env())
        ended = time.monotonic()
        self.findings.looks += 1
        if answer.returncode:
            self.findings.untrue.append(f"status: exit code {answer.returncode}: {answer.stderr[-500:]}")
            return
        record = json.loads(answer.stdout)
        silent = record["controller_silent_since"] is not None
        submitting = any(start < ended and end > began for start, end in self._submits)
        counts = Counter(said["state"] for said in record["runs"])
        self.faults.note(f"look at {launcher}{' (controller silent)' if silent else ''}: {dict(counts)}")
        found = list(self._untrue(record["runs"], before, after, silent, submitting))
        if any("a trainer works" in text for _, text in found):
            time.sleep(ENDING_SECONDS)
            after = Truth.now(folders, self.workspace.env())
            found = list(self._untrue([said for said, _ in found], before, after, silent, submitting))
        for said, text in found:
            line = f"{time.strftime('%H:%M:%S')} {launcher} {said['id']} ({said['reason']}): {text}"
            self.faults.note(f"UNTRUE {line}")
            self.findings.untrue.append(line)

    def _untrue(
        self, runs: list[dict[str, Any]], before: Truth, after: Truth, silent: bool, submitting: bool
    ) -> Iterator[tuple[dict[str, Any], str]]:
        for said in runs:
            folder = self.workspace.folder / said["folder"]
            text = soak_truth.contradiction(said, folder, before, after, silent, submitting)
            if text:
                yield said, text

    # ---- the end

    def _compare(self) -> None:
        twins = {launcher: {path.name: path for path in self.folders(launcher)} for launcher in STUDIES}
        first, second = twins.values()
        for name in sorted(first):
            self._check_rows(first[name])
            self._check_rows(second[name])
            if without_clock(first[name]) != without_clock(second[name]):
                self.findings.wrong.append(f"{name}: the two launchers' rows differ")

    def _count_lost(self) -> None:
        for launcher in STUDIES:
            self.workspace.run("report", launcher)
            with (self.out / launcher / "report" / "summary.csv").open(newline="") as file:
                reported = Counter(row["run"] for row in csv.DictReader(file) if row["state"] == "done")
            said = json.loads(self.workspace.run("status", launcher, "--json").stdout)["runs"]
            folders = self.folders(launcher)
            lost = {path.name for path in folders} - reported.keys()
            lost |= {run["id"] for run in said if run["state"] != "done"}
            lost |= {path.name for path in folders if not (path / run_files.SUMMARY).exists()}
            missing = CELLS * self.seeds - len(folders)
            self.findings.lost += [f"{launcher}/{name}" for name in sorted(lost)] + ["never created"] * missing
            self.findings.wrong += [f"{name}: {n} times in the report" for name, n in reported.items() if n > 1]

    def _check_rows(self, folder: Path) -> None:
        """Each step once, whole lines, one end."""
        text = (folder / run_files.LOSS).read_text()
        steps = [line.split(",")[0] for line in text.splitlines()[1:]]
        if steps != ["1", *(str(step) for step in range(2, 21, 2))] or not text.endswith("\n"):
            self.findings.wrong.append(f"{folder}: steps {steps}")
        ends = [event for event in read_events(folder) if event["event"] == "finished"]
        if len(ends) != 1:
            self.findings.wrong.append(f"{folder}: finished {len(ends)} times")

    def _against_undisturbed(self) -> None:
        """A sample of the runs; the others have been compared with their twins."""
        folders = self.folders(next(iter(STUDIES)))
        folders = self.random.sample(folders, min(5 + len(folders) // 25, len(folders)))
        with Nursery() as nursery:
            for folder in folders:
                alone = self.workspace.folder / "alone" / folder.name
                flags = ["--config", str(folder / run_files.CONFIG), f"--system.work_dir={alone}"]
                log = self.workspace.folder / "alone.out"
                code = nursery.start(train, flags, False, log=log).wait()
                if code or without_clock(alone) != without_clock(folder):
                    self.findings.wrong.append(f"{folder}: not as an undisturbed run ({code})")

    def _count_left(self) -> None:
        """Jobs and processes have time to end; a file stays, or it does not.

        A controller that was killed right after `scancel` comes back with the job as running. It compares its jobs with
        those of the nodes when they register, every few minutes; `reconfigure` makes them register.
        """
        end = time.monotonic() + PATIENCE
        while (left := self._living()) and time.monotonic() < end:
            subprocess.run(["scontrol", "reconfigure"], env=self.workspace.env(), capture_output=True, check=False)
            time.sleep(5)
        strays = [path for pattern in STRAY for path in self.out.rglob(pattern)]
        self.findings.left = left + [str(path) for path in strays]

    def _living(self) -> list[str]:
        queue = subprocess.run(
            ["squeue", "--noheader"], env=self.workspace.env(), capture_output=True, text=True, check=False
        )
        own = str(self.out).encode()
        lines = {path.parent.name: _command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
        processes = [f"process {pid}: {line!r}" for pid, line in lines.items() if own in line]
        return (queue.stdout or queue.stderr).splitlines() + processes


def _command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
