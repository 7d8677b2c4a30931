"""Links and FIFOs that somebody has put where Ablatrix is going to write: refused in one line, or replaced."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ablatrix.trainer.data.tokenizer import FILES
from tests.support.evidence import Cases, Tally
from tests.trust.cycle import Cycle
from tests.trust.recorder import Call, Recorder

KINDS = ("dangling link", "link to a file", "link to a folder", "hard link", "FIFO")
MADE = ("out", "cache")
# names with a random part or the time in them, which nobody can put there before; other temporary files count
UNGUESSABLE = re.compile(r"\.[0-9a-f]{8,}(\.tmp|\b)|[0-9a-f]{16}[.-]|/events\.out\.tfevents\.|\.pyc\b|__pycache__")
MOST_REFUSALS = 60


@dataclass(frozen=True)
class Recorded:
    """A cycle that nobody has disturbed: what it called, and what it left, as (mode, group) of each path."""

    cycle: Cycle
    calls: list[Call]
    left: dict[Path, os.stat_result]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, offline_cache: Path) -> Recorded:
    """Under umask 002 in a setgid folder, as groups that share their scratch have it."""
    base = tmp_path_factory.mktemp("planted")
    folder, tokenizer = base / "scratch", base / "tokenizer"
    folder.mkdir()
    folder.chmod(0o2775)
    shutil.copytree(offline_cache / "tokenizers" / "sample", tokenizer)
    assert {path.name for path in tokenizer.iterdir()} == set(FILES)
    recorder = Recorder(base / "record", folder)
    cycle = Cycle(folder, 0o002, str(recorder.hook))
    cycle.prepare(tokenizer, base / "slurm")
    for words in cycle.steps():
        result = cycle.run(words)
        assert result.returncode == (1 if "not ready" in result.stdout else 0), (words, result.stdout, result.stderr)
    left = {path: path.lstat() for top in MADE for path in (folder / top, *(folder / top).rglob("*"))}
    return Recorded(cycle, recorder.calls(), left)


def private(path: Path, left: dict[Path, os.stat_result]) -> bool:
    """Is it in a folder that only its owner can look into?"""
    return any(parent in left and not left[parent].st_mode & 0o077 for parent in path.parents)


def test_nothing_is_opened_through_a_link(recorded: Recorded, tally: Tally) -> None:
    """Whatever is opened to write refuses links, or is a new file; and what is left was all seen to be made."""
    ours = [call for call in recorded.calls if not private(call.path, recorded.left)]
    following = [c for c in ours if c.follows_links and "events.out.tfevents" not in c.path.name]  # tensorboard's own
    assert not following, "\n".join(f"{call.event} {call.path} {call.callers}" for call in following)
    seen = {call.path for call in recorded.calls}
    moved = {call.path for call in recorded.calls if call.event == "os.rename"}
    strange = [p for p in recorded.left if p not in seen and not moved.intersection(p.parents)]
    assert not strange, strange
    tally("files are opened so that links are not followed", len(ours), f"{len(recorded.left)} files and folders made")


def wrong_modes(left: dict[Path, os.stat_result], umask: int) -> list[str]:
    """Paths whose mode is not the one that the umask gives, where nothing is private; or whose group is another one."""
    wrong = []
    for path, status in left.items():
        mode = stat.S_IMODE(status.st_mode)
        if path.suffix == ".sbatch":  # it holds the study's `slurm.setup`
            expected = {0o600}
        elif path.name == "submitit" or private(path, left):  # it holds pickles that a job loads
            continue
        elif stat.S_ISDIR(status.st_mode):
            expected = {0o2777 & ~umask}
        else:
            expected = {0o666 & ~umask}
        if mode not in expected:
            wrong.append(f"{path} {mode:o}")
    return wrong


def test_modes_follow_the_umask(recorded: Recorded, cases: Cases, tally: Tally) -> None:
    """Groups that share their scratch have umask 002 and setgid folders; others keep everything to themselves."""
    cycle, left = recorded.cycle, {0o002: recorded.left}
    for umask in (0o022, 0o077)[: cases(0, 2)]:
        cycle.forget()
        other = Cycle(cycle.folder, umask)
        other.tokenizer, other.slurm = cycle.tokenizer, cycle.slurm
        for words in other.steps():
            result = other.run(words)
            assert result.returncode == 0 or "not ready" in result.stdout, (words, result.stdout, result.stderr)
        left[umask] = {p: p.lstat() for top in MADE for p in (cycle.folder / top, *(cycle.folder / top).rglob("*"))}
    for umask, found in left.items():
        assert not wrong_modes(found, umask), f"umask {umask:03o}"
        scripts = [path for path in found if path.suffix == ".sbatch"]
        pickles = [path for path in found if path.name == "submitit" and path.parent.name == "logs"]
        assert scripts
        assert pickles
        assert all(stat.S_IMODE(found[path].st_mode) & 0o777 == 0o700 for path in pickles)
    count = sum(len(found) for found in left.values())
    tally(
        "modes follow the umask, what may hold a secret is its owner's alone", count, f"{len(left)} umasks, setgid kept"
    )


# ---- plants


class Plants:
    """What was put where, and the things outside that it leads to."""

    def __init__(self, scratch: Path, outside: Path) -> None:
        self.scratch, self.outside = scratch, outside
        self.there: dict[Path, str] = {}
        self.waiting: dict[Path, str] = {}
        outside.mkdir()
        (outside / "file").write_text("victim\n")
        (outside / "folder").mkdir()
        (outside / "folder" / "inside").write_text("victim\n")
        for path in outside.rglob("*"):
            os.utime(path, ns=(10**18, 10**18))
        self.before = self._look()

    def _look(self) -> dict[str, tuple[int, int, str]]:
        found = {}
        for path in sorted(self.outside.rglob("*")):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
        return found

    def unharmed(self) -> bool:
        """Is everything outside as it was, and nothing more there?"""
        return self._look() == self.before

    def put(self, wanted: dict[Path, str]) -> None:
        """Put them there; one below another one waits until that is gone."""
        for path, kind in sorted(wanted.items()):
            if any(parent in self.there for parent in path.parents):
                self.waiting[path] = kind
            elif not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._make(path, kind)
                self.there[path] = kind

    def _make(self, path: Path, kind: str) -> None:
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "hard link":
            os.link(self.outside / "file", path)
        else:
            path.symlink_to(self.outside / {"dangling link": "none"}.get(kind, kind.rpartition(" ")[2]))

    def is_plant(self, path: Path) -> bool:
        """Is it still what was put there?"""
        if not os.path.lexists(path):
            return False
        status = path.lstat()
        return not stat.S_ISDIR(status.st_mode) and (not stat.S_ISREG(status.st_mode) or status.st_nlink > 1)

    def named(self, text: str) -> list[Path]:
        """Those that an error names."""
        wrapped = r"\n?"  # long lines are, in the middle of a path too
        names = {path: wrapped.join(map(re.escape, str(path.relative_to(self.scratch)))) for path in self.there}
        told = [path for path, name in names.items() if re.search(name + r"(?![\w/.-])", text)]
        return [path for path in told if self.is_plant(path)]

    def take_away(self, paths: list[Path]) -> None:
        """As the user does who has read the error."""
        for path in paths:
            path.unlink()
            del self.there[path]
        waiting, self.waiting = self.waiting, {}
        self.put(waiting)


def places(recorded: Recorded) -> list[Path]:
    """Every path that was made and whose name can be guessed."""
    made = {call.path for call in recorded.calls if not private(call.path, recorded.left)}
    made |= {path for path in recorded.left if not private(path, recorded.left)}
    scratch = recorded.cycle.folder
    inside = {path for path in made if path.relative_to(scratch).parts[0] in MADE}
    named = {path for path in inside if not UNGUESSABLE.search(str(path))} - {scratch / top for top in MADE}
    return sorted(path for path in named if not re.search(r"/\.snapshots/[0-9a-f]+/.", str(path)))


def go_through(cycle: Cycle, plants: Plants, short: bool) -> int:
    """The cycle, with what is refused taken away; how many refusals there were."""
    refused = 0
    for words in cycle.steps(short):
        for _ in range(MOST_REFUSALS):
            result = cycle.run(words)
            told = result.stdout + result.stderr
            assert "Traceback" not in told, (words, told)
            assert plants.unharmed(), (words, told)
            named = plants.named(told) if result.returncode else []
            if not named:
                break
            plants.take_away(named)
            refused += len(named)
        assert result.returncode == 0 or "not ready" in told, (words, told, plants.there)
    return refused


def rounds(wanted: list[Path], full: bool, seed: int) -> Iterator[dict[Path, str]]:
    """Each place with each kind, or a few of them."""
    draw = random.Random(seed)
    if not full:
        cheap = [path for path in wanted if "/out/command" in str(path) and "/report" not in str(path)]
        yield {path: draw.choice(KINDS) for path in draw.sample(cheap, 8)}
        return
    kinds = draw.sample(KINDS, len(KINDS))
    for turn in range(len(KINDS)):
        yield {path: kinds[(turn + number) % len(KINDS)] for number, path in enumerate(wanted)}


def test_what_was_planted_is_refused_or_replaced(
    recorded: Recorded, tmp_path: Path, seed: int, cases: Cases, tally: Tally
) -> None:
    cycle, wanted = recorded.cycle, places(recorded)
    assert len(wanted) > 50
    planted, refused, replaced, full = 0, 0, 0, cases(0, 1) == 1
    for number, chosen in enumerate(rounds(wanted, full, seed)):
        cycle.forget()
        plants = Plants(cycle.folder, tmp_path / f"outside-{number}")
        plants.put(chosen)
        refused += go_through(cycle, plants, short=not full)
        replaced += sum(not plants.is_plant(path) for path in plants.there)
        planted += len(chosen)
        assert plants.unharmed()
        assert list(cycle.folder.glob("out/command/baseline-*/summary.json"))
        if full:
            assert list(cycle.folder.glob("out/trained/baseline-*/summary.json"))
            assert (cycle.folder / "out/command/report/report.html").is_file()
    detail = f"{refused} refused, {replaced} replaced, the others not met; {len(wanted)} places, 0 targets changed"
    tally("a planted link or FIFO is refused in one line or replaced", planted, detail)
