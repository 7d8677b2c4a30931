"""A stub of sbatch, squeue, scontrol, scancel and sacct, backed by a folder, for rare behavior of a controller.

sbatch may answer late, queue a job twice, not answer although the job is queued, print other numbers before the id,
lose the job's comment, or refuse; every call is counted.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

PROGRAM = """\
#!{python} -S
import os, random, re, sys, time
home = {home!r}
name = os.path.basename(sys.argv[0])
with open(home + "/calls", "a") as calls:
    calls.write(name + "\\n")
mode = open(home + "/mode").read().strip()
asked = "".join(w[11:] for w in sys.argv if w.startswith("--clusters="))
sys.argv = [w for w in sys.argv if not w.startswith("--clusters=")]
if name != "sbatch" and asked != open(home + "/cluster").read():
    sys.exit(0 if name == "squeue" else name + ": error: Invalid job id specified")

def add(comment, array):
    # the number is taken by mkdir, as several sbatch run at once
    number = 1
    while True:
        try:
            os.mkdir(home + "/jobs/%d" % number)
            break
        except FileExistsError:
            number += 1
    with open(home + "/jobs/%d/.new" % number, "w") as job:
        after = [word for word in sys.argv if word.startswith("--dependency=")]
        job.write("\\n".join([comment, array, os.path.abspath(sys.argv[-1]), *after]))
    os.rename(home + "/jobs/%d/.new" % number, home + "/jobs/%d/job" % number)
    return number

if mode == "down" and name != "scancel":
    sys.exit(name + ": error: Unable to contact slurm controller (connect failure)")
if name == "sbatch":
    if "--test-only" in sys.argv:
        sys.exit(0)
    text = open(sys.argv[-1]).read()
    comment = re.search(r"--comment=(\\S+)", text)[1]
    array = re.search(r"--array=0-(\\d+)", text)
    array = array[1] if array else ""
    limit = os.path.exists(home + "/limit") and int(open(home + "/limit").read())
    held = [open(home + "/jobs/" + n + "/job").read().split("\\n")[1] for n in os.listdir(home + "/jobs")
            if os.path.exists(home + "/jobs/" + n + "/job")]
    if limit and sum(int(a or 0) + 1 for a in [*held, array]) > limit:
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit\\nsbatch: error: Batch job submission failed: "
                 "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)")
    act = random.choice(["good", "late", "twice", "never", "lost"]) if mode == "chaos" else mode
    if act == "refuse":
        sys.exit("sbatch: error: Batch job submission failed: Invalid account")
    if act == "lost":
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    if act == "late":
        time.sleep(random.random() * 0.3)
    number = add("set by the site" if act in ("overwritten", "unmarked") else comment, array)
    if act in ("banner", "unmarked"):
        print("Jobs of yours in the queue:\\n1017\\n2026")
    if act == "twice":
        add(comment, array)
    if act == "never":
        time.sleep(60)
    print(number)
elif name == "squeue":
    user = [w for w in sys.argv if w.startswith("--user=")][0][7:]
    for number in sorted(os.listdir(home + "/jobs"), key=int):
        try:
            comment, array, script, *_ = open(home + "/jobs/" + number + "/job").read().split("\\n")
        except FileNotFoundError:
            continue
        jobs = ["%s_%d" % (number, i) for i in range(int(array) + 1)] if array else [number]
        for job in jobs:
            shown = [comment] if mode == "unmarked" else [comment, script]
            print("|".join([job, "PENDING", user, "", "Priority", *shown]))
elif name == "scancel":
    for number in sys.argv[1:]:
        os.unlink(home + "/jobs/" + number.split("_")[0] + "/job")
elif name == "scontrol" and sys.argv[1:3] == ["show", "config"]:
    print("MaxArraySize            = 1001")
else:
    sys.exit(name + ": error: nothing known")
"""


class FakeSlurm:
    """A fake Slurm; put `bin` first on PATH. `mode`: good, late, twice, never, lost, refuse, down, or chaos (random).

    banner: numbers before the id. overwritten: the site sets the comment. unmarked: both, and no script is shown.
    """

    def __init__(self, home: Path, mode: str = "good") -> None:
        self.home, self.bin = home, home / "bin"
        (home / "jobs").mkdir(parents=True)
        self.bin.mkdir()
        self.set_mode(mode)
        self.set_cluster("")
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "srun"):
            path = self.bin / name
            path.write_text(PROGRAM.format(python=sys.executable, home=str(home)))
            path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def set_mode(self, mode: str) -> None:
        (self.home / "mode").write_text(mode)

    def set_cluster(self, name: str) -> None:
        """Put jobs on this cluster, which Slurm's commands only show with --clusters."""
        (self.home / "cluster").write_text(name)

    def calls(self, name: str) -> int:
        """Return how often a command was called."""
        path = self.home / "calls"
        return path.read_text().splitlines().count(name) if path.exists() else 0

    def set_limit(self, jobs: int) -> None:
        """Set how many jobs may be in the queue; sbatch refuses more."""
        (self.home / "limit").write_text(str(jobs))

    def dependency(self, number: int) -> str:
        """Return the --dependency of a job, '' for none."""
        words = (self.home / "jobs" / str(number) / "job").read_text().split("\n")[3:]
        return words[0].partition("=")[2] if words else ""

    def end(self, number: int) -> None:
        """Remove a job from the queue."""
        (self.home / "jobs" / str(number) / "job").unlink()

    def jobs(self) -> dict[int, int]:
        """Return job number -> number of its tasks, for each job in the queue."""
        found = {}
        for path in (self.home / "jobs").glob("*/job"):
            array = path.read_text().split("\n")[1]
            found[int(path.parent.name)] = int(array) + 1 if array else 1
        return found


def write_commands(folder: Path, **scripts: str) -> None:
    """Write stand-ins for single commands, each a shell script."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
