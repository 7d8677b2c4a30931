"""What befalls a cluster: each fault hits something of this soak's own, known by Slurm's answer or by a pid file."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import PATIENCE
from tests.trust import soak_truth

KINDS = ("scancel", "requeue", "trainer", "slurmd", "slurmctld", "disk")  # each of them befalls every soak
OFTEN = ("scancel", "requeue", "trainer")  # what may happen in the place of one that finds nothing to hit
# Loss of power, a node set down by hand, a trainer that stands still, a submit that is killed: where there is time
MORE = ("node", "down", "freeze", "submit")


@dataclass
class Cluster:
    """The test cluster, through its script (tests/slurm/cluster)."""

    script: str
    lab: Path
    environment: Mapping[str, str]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, *words: str) -> bool:
        """A command of Slurm; was it carried out?"""
        answer = subprocess.run(words, env=self.environment, capture_output=True, timeout=PATIENCE, check=False)
        return answer.returncode == 0

    def up(self) -> None:
        """Bring back whatever has gone. A node that is killed meanwhile makes it fail: then once more."""
        with self._lock:
            for _ in range(4):
                if subprocess.run([self.script, "up"], env=self.environment, capture_output=True).returncode == 0:
                    return
        raise RuntimeError("the cluster cannot be brought up")

    def pid(self, daemon: str) -> int:
        return int((self.lab / "run" / f"{daemon}.pid").read_text())

    def kill(self, daemon: str) -> bool:
        """kill -9; False where it is not running."""
        try:
            os.kill(self.pid(daemon), signal.SIGKILL)
        except (OSError, ValueError):
            return False
        return True

    def nodes(self) -> list[str]:
        return sorted(path.stem for path in (self.lab / "run").glob("node[0-9]*.start"))


@dataclass
class Disk:
    """The file system under `out/`, which can be made as small as what is on it."""

    mount: Path
    size: str = "3g"

    def attach(self) -> bool:
        """False where nothing can be mounted here: then there is no disk to fill."""
        self.mount.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "soak", str(self.mount)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def resize(self, size: str) -> bool:
        command = ["mount", "-o", f"remount,size={size}", str(self.mount)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self) -> bool:
        for _ in range(20):  # somebody may write between the look and the remount
            found = os.statvfs(self.mount)
            if self.resize(str((found.f_blocks - found.f_bfree) * found.f_frsize)):
                return True
        return False

    def free(self) -> None:
        self.resize(self.size)

    def detach(self) -> None:
        subprocess.run(["umount", str(self.mount)], capture_output=True, check=False)


class Faults:
    """A fault every `pace` seconds, in an order drawn with `seed`, until `stop` or until there were `most`.

    Where there may be many, those of MORE are among them.
    """

    def __init__(self, cluster: Cluster, disk: Disk | None, out: Path, pace: float, most: int, seed: int) -> None:
        self.cluster, self.disk, self.out, self.pace, self.most = cluster, disk, out, pace, most
        self.random = random.Random(f"faults {seed}")
        self.counts: Counter[str] = Counter()
        self.diary = out.parent / "soak.log"
        self.submit: subprocess.Popen[str] | None = None  # of the user, while one is at work
        self.broken: BaseException | None = None
        self._stopping = threading.Event()
        self._repairs: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more faults; all that was broken is brought back."""
        self._stopping.set()
        self._thread.join()
        for repair in self._repairs:
            repair.join()
        if self.disk:
            self.disk.free()
        self.cluster.up()
        if self.broken:
            raise self.broken

    def note(self, text: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def kinds(self) -> list[str]:
        more = MORE if self.most > 100 else ()
        return [kind for kind in (*KINDS, *more) if self.disk or kind != "disk"]

    def _run(self) -> None:
        bag: list[str] = []
        try:
            while not self._stopping.is_set() and self.counts.total() < self.most:
                if not bag:  # the first time without what is not asked of every soak
                    kinds = self.kinds() if self.counts else [kind for kind in self.kinds() if kind in KINDS]
                    bag = self.random.sample(kinds, len(kinds))
                # what finds nothing to hit now stays in the bag
                kind = next((kind for kind in [*bag, *OFTEN] if getattr(self, f"_{kind}")()), None)
                if kind:
                    self.counts[kind] += 1
                if kind in bag:
                    bag.remove(kind)
                self._stopping.wait(self.pace * self.random.uniform(0.7, 1.3))
        except BaseException as error:  # noqa: BLE001  (raised by `stop`, in the main thread)
            self.broken = error

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        def wait() -> None:
            self._stopping.wait(seconds)
            try:
                repair()
            except BaseException as error:  # noqa: BLE001  (as in `_run`)
                self.broken = error

        self._repairs.append(threading.Thread(target=wait, daemon=True))
        self._repairs[-1].start()

    def _broken(self) -> bool:
        """Are two things broken already? On a busy machine nothing would ever work again."""
        return sum(repair.is_alive() for repair in self._repairs) > 1

    def _job(self, states: tuple[str, ...]) -> str | None:
        jobs = soak_truth.jobs(self.cluster.environment) or {}
        found = sorted(job.id for job in jobs.values() if job.state in states)
        return self.random.choice(found) if found else None

    def _scancel(self) -> bool:
        job = self._job(("RUNNING", "PENDING") if self.random.random() < 0.3 else ("RUNNING",))
        return bool(job) and self._call("scancel", str(job))

    def _requeue(self) -> bool:
        job = self._job(("RUNNING",))
        return bool(job) and self._call("scontrol", "requeue", str(job))

    def _call(self, *words: str) -> bool:
        done = self.cluster.call(*words)
        self.note(" ".join(words) + ("" if done else ": refused"))
        return done

    def _trainers(self) -> dict[str, frozenset[int]]:
        """Of this soak."""
        return {folder: pids for folder, pids in soak_truth.trainers().items() if Path(folder).is_relative_to(self.out)}

    def _signal(self, number: signal.Signals) -> int | None:
        """Send it to a trainer; which process that was."""
        own = self._trainers()
        if not own:
            return None
        folder = self.random.choice(sorted(own))
        pid = min(own[folder])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.note(f"{number.name} to the trainer of {folder}, process {pid}")
            return pid
        return None

    def _trainer(self) -> bool:
        return self._signal(signal.SIGKILL) is not None

    def _freeze(self) -> bool:
        """While it stands still its job may be cancelled, or begun again elsewhere."""
        pid = self._signal(signal.SIGSTOP)

        def thaw() -> None:
            if pid and any(pid in pids for pids in self._trainers().values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        if pid:
            self._later(self.random.choice([3.0, 9.0]), thaw)
        return pid is not None

    def _slurmd(self) -> bool:
        node = self.random.choice(self.cluster.nodes())
        if self._broken() or not self.cluster.kill(node):
            return False
        pause = self.random.choice([0.5, 5.0, 15.0])  # after 10 s without a word the node is down, its jobs requeued
        self.note(f"kill -9 of slurmd on {node}, back in {pause} s")
        self._later(pause, self.cluster.up)
        return True

    def _node(self) -> bool:
        node = self.random.choice(self.cluster.nodes())
        if self._broken() or not self.cluster.call(self.cluster.script, "fail", node):
            return False
        self.note(f"loss of {node}")
        self._later(self.random.choice([1.0, 14.0]), self.cluster.up)
        return True

    def _down(self) -> bool:
        node = self.random.choice(self.cluster.nodes())
        state = ("scontrol", "update", f"nodename={node}")
        if self._broken() or not self._call(*state, "state=down", "reason=soak"):
            return False
        self._later(self.random.choice([1.0, 14.0]), self.cluster.up)
        return True

    def _slurmctld(self) -> bool:
        if self._broken() or not self.cluster.kill("slurmctld"):
            return False
        pause = self.random.choice([0.5, 4.0, 12.0])
        self.note(f"kill -9 of slurmctld, back in {pause} s")
        self._later(pause, self.cluster.up)
        return True

    def _disk(self) -> bool:
        if not self.disk or not self.disk.fill():
            return False
        pause = self.random.uniform(2.0, 6.0)
        self.note(f"disk full for {pause:.0f} s")
        self._later(pause, self.disk.free)
        return True

    def _submit(self) -> bool:
        submit = self.submit
        if submit is None or submit.poll() is not None:
            return False
        submit.kill()
        self.note("kill -9 of a submit")
        return True
