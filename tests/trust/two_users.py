"""Two users in one scratch folder, really with two ids: `python -m tests.trust.two_users SCRATCH TOKENIZERS CORPUS`.

Run by root in a process of its own. What users do, they do in forks of it that have given root's rights up: so the
interpreter, which may lie in root's home, need not be readable for them. Each scenario prints one line of JSON:
[scenario, {who or what: {"value": ...} or {"error": one line, "code": n} or {"traceback": ...}}].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.errors import AblatrixError

ALICE, BOB, GROUP = 61234, 61235, 61240
Outcome = dict[str, Any]

STUDY = """\
name: {name}
base:
  data: {{file_path: {corpus}, tokenizer: sample, block_size: 16, test_size: 4}}
  model: {{model_type: gpt-nano, n_layer: 1, n_head: 1, n_embd: 8}}
  trainer: {{max_iters: 3, batch_size: 2, log_interval: 1, eval_interval: 2, eval_tokens: 200, ckpt_interval: 2}}
  system: {{cache_dir: {cache}}}
features: {{rope: {{model.rope: true}}}}
slurm: {{time: "00:10:00", mem: 1G, cpus_per_task: 1}}
"""


def begin(uid: int, call: Callable[[], Any], umask: int = 0o022) -> Callable[[], Outcome]:
    """Start `call` as this user, who is in GROUP too; the result waits for it and tells how it ended."""
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(source)
        outcome: Outcome = {}
        try:
            os.setgroups([GROUP])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            os.environ |= {"USER": f"user{uid}", "LOGNAME": f"user{uid}", "HOME": "/nonexistent"}
            outcome = {"value": call()}
        except AblatrixError as error:
            outcome = {"error": str(error), "code": error.exit_code}
        except BaseException:  # noqa: BLE001  (a forked child reports all, and must not return)
            outcome = {"traceback": traceback.format_exc()}
        with os.fdopen(sink, "w") as file:
            json.dump(outcome, file)
        os._exit(0)
    os.close(sink)

    def end() -> Outcome:
        with os.fdopen(source) as file:
            shown = file.read()
        os.waitpid(pid, 0)
        result: Outcome = json.loads(shown) if shown else {"traceback": "the process was killed"}
        return result

    return end


def as_user(uid: int, call: Callable[[], Any], umask: int = 0o022) -> Outcome:
    """`begin`, and wait for it."""
    return begin(uid, call, umask)()


def verb(*words: object) -> Callable[[], dict[str, Any]]:
    """`python -m orchestrator WORDS` as a call: its exit code, what it printed and its last line of errors."""

    def call() -> dict[str, Any]:
        from ablatrix.orchestrator import cli

        sys.argv = ["orchestrator", *map(str, words)]
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
        return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

    return call


def tree(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """(path, mode, owner, group, mtime) of everything below."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns))
    return found


class Place:
    """A scratch folder with a corpus and the tokenizer `sample`, of this owner, group and mode."""

    def __init__(self, folder: Path, given: Sequence[Path], mode: int, group: int = 0) -> None:
        tokenizers, corpus = given
        self.folder, self.cache, self.corpus = folder, folder / "cache", folder / "corpus.jsonl"
        folder.mkdir()
        self.cache.mkdir()
        shutil.copy(corpus, self.corpus)
        shutil.copytree(tokenizers / "tokenizers", self.cache / "tokenizers")
        shutil.copy(tokenizers / "manifest.json", self.cache / "manifest.json")
        (folder / "out").mkdir()
        for path in (folder, self.cache, folder / "out"):
            os.chown(path, -1, group)
            path.chmod(mode)
        for path in self.cache.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def experiment(self, name: str) -> Path:
        """An experiment file of this name."""
        path = self.folder / f"{name}.yaml"
        path.write_text(STUDY.format(name=name, corpus=self.corpus, cache=self.cache))
        path.chmod(0o644)
        return path

    def build(self) -> dict[str, Any]:
        """The token cache of the corpus; what its meta.json says."""
        from ablatrix.trainer.config import DataConfig
        from ablatrix.trainer.data import cache_builder

        os.chdir(self.folder)
        config = DataConfig(file_path=str(self.corpus), tokenizer="sample", block_size=16, test_size=4)
        meta = cache_builder.build(config, self.cache, 1)
        return meta.model_dump(include={"tokens_sha256", "documents", "fingerprint"})

    def train(self, run_dir: Path) -> list[str]:
        """loss.csv of a run, its columns of clocks left out."""
        from ablatrix.trainer.cli import main

        flags = [f"--data.file_path={self.corpus}", "--data.tokenizer=sample", f"--system.cache_dir={self.cache}"]
        flags += ["--data.block_size=16", "--data.test_size=4", "--model.n_layer=1", "--trainer.max_iters=3"]
        flags += ["--trainer.batch_size=2", "--trainer.log_interval=1", "--trainer.eval_tokens=200"]
        with contextlib.redirect_stdout(io.StringIO()):
            code = main([*flags, "--model.model_type=gpt-nano", f"--system.work_dir={run_dir}"])
        assert code == 0, code
        rows = (run_dir / "loss.csv").read_text().splitlines()
        return [",".join(cell for k, cell in enumerate(row.split(",")) if k not in (2, 7)) for row in rows]


def shared_cache(place: Place) -> dict[str, Any]:
    """Warmed by one, read by the other."""
    found: dict[str, Any] = {"alice": as_user(ALICE, place.build)}
    before = tree(place.cache)
    for uid, name in ((ALICE, "first"), (BOB, "second")):
        run_dir = place.folder / "out" / name
        found[name] = as_user(uid, lambda run_dir=run_dir: place.train(run_dir))
    found["bob"] = as_user(BOB, place.build)
    found["unchanged"] = tree(place.cache) == before
    return found


def built_at_once(place: Place) -> dict[str, Any]:
    """Both begin at the same time, in a folder of their group."""
    ends = [begin(uid, place.build, 0o002) for uid in (ALICE, BOB)]
    found: dict[str, Any] = dict(zip(("alice", "bob"), [end() for end in ends], strict=True))
    files = [path for path in (place.cache / "tokens").rglob("*") if path.is_file()]
    return found | {"modes": sorted({oct(path.stat().st_mode & 0o777) for path in files}), "files": len(files)}


def left_unfinished(place: Place) -> dict[str, Any]:
    """Alice's job was killed in the middle, in a folder that Bob cannot write."""
    from ablatrix.trainer.data import token_cache

    def killed() -> None:
        token_cache.join_shards = lambda *_: os._exit(9)  # type: ignore[assignment]
        place.build()

    found: dict[str, Any] = {"alice": as_user(ALICE, killed)}
    found["bob"] = as_user(BOB, place.build)
    found["owners"] = sorted(path.stat().st_uid for path in place.folder.glob("**/tokens/*"))
    found["alice again"] = as_user(ALICE, place.build)
    return found


def stale_claim(place: Place) -> dict[str, Any]:
    """Alice's process died while it held the cache's manifest."""
    from ablatrix.trainer.data.manifest import DataEntry, add_entry

    def hold() -> None:
        from ablatrix.trainer.data.shard_claims import Claims

        Claims(place.cache).acquire(".manifest.claim")
        os._exit(9)

    def enter() -> str:
        try:
            add_entry(place.cache, "x", DataEntry(source="hub:x", file="x", size=1, sha256="", path="x"))
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "entered"

    as_user(ALICE, hold, 0o002)
    return {"bob": as_user(BOB, enter, 0o002)}


def studies(place: Place) -> dict[str, Any]:
    """Each one's own, then the other one's: looked at, and submitted again under the same name."""
    os.chdir(place.folder)
    files = {ALICE: place.experiment("ours"), BOB: place.experiment("theirs")}
    submit = ("submit", "--launcher", "sbatch", "--no-report")
    found: dict[str, Any] = {}
    for uid, name in ((ALICE, "alice"), (BOB, "bob")):
        found[name] = as_user(uid, verb(*submit, files[uid]))
    found["alice's last"] = as_user(ALICE, verb("status", "--json"))
    found["bob's last"] = as_user(BOB, verb("status", "--json"))
    run_dir = next((place.folder / "out" / "ours").glob("baseline-*"), None)
    if run_dir is None:
        return found
    found["trained"] = as_user(ALICE, lambda: run_task(run_dir))
    before = tree(place.folder / "out")
    for words in (("status", "ours"), ("show", "baseline", "--study", "ours"), ("report", "ours"),
                  ("cancel", "--all", "-y", "--study", "ours"), (*submit, files[ALICE]),
                  (*submit, files[ALICE], "--rerun", "baseline")):  # fmt: skip
        found["bob: " + " ".join(str(w) for w in words if "/" not in str(w))] = as_user(BOB, verb(*words))
    found["unchanged"] = tree(place.folder / "out") == before
    found["alice's report"] = as_user(ALICE, verb("report", "ours"))
    study = place.folder / "out" / "ours"
    for path, name in ((study / "study.json", "private file"), (study, "private folder")):
        path.chmod(0o700)
        found[name] = as_user(BOB, verb("status", "ours"))
    owners = {path.name: path.lstat().st_uid for path in (place.folder / "out").iterdir()}
    return found | {"owners": owners}


def run_task(run_dir: Path) -> int:
    """What the job does, without an exec: claim the run and train it."""
    from ablatrix.orchestrator.store import submit_attempts
    from ablatrix.trainer.cli import main

    assert submit_attempts.start(run_dir, 1, "1_0") is None
    with (run_dir / "job.out").open("ab") as output, contextlib.redirect_stdout(io.TextIOWrapper(output)):
        return main(["--config", str(run_dir / "config.json"), f"--system.work_dir={run_dir}", "--trainer.resume=auto"])


def stub_scheduler(folder: Path) -> None:
    """Commands that everybody may execute: sbatch takes every job, squeue knows none, scontrol the array size."""
    folder.mkdir()
    answers = {"sbatch": "echo 1", "squeue": "", "scontrol": 'test "$2" = config && echo "MaxArraySize = 1001"'}
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "srun", "sinfo"):
        (folder / name).write_text(f"#!/bin/sh\n{answers.get(name, 'exit 1')}\n")
        (folder / name).chmod(0o755)
    folder.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def load_everything(scratch: Path, given: Sequence[Path]) -> None:
    """As root, once: what is imported late must be there before the forks, which cannot read the libraries."""
    from ablatrix.orchestrator.submit import preflight

    preflight.check_study = lambda *_: []  # it starts interpreters, and has tests of its own
    place = Place(scratch / "root", given, 0o755)
    place.build()
    os.chdir(place.folder)
    verb("submit", "--launcher", "sbatch", "--no-report", place.experiment("ours"))()
    run_dir = next((place.folder / "out" / "ours").glob("baseline-*"))
    assert run_task(run_dir) == 0
    for words in (("status",), ("show", "baseline"), ("report",), ("cancel", "--all", "-y"), ("status", "none")):
        verb(*words)()


def main(words: Sequence[str]) -> int:
    """All scenarios, each in a place of its own."""
    scratch, *given = map(Path, words)
    os.umask(0o022)
    stub_scheduler(scratch / "bin")
    load_everything(scratch, given)
    scenarios: dict[str, tuple[Callable[[Place], dict[str, Any]], int, int]] = {
        "shared cache": (shared_cache, 0o1777, 0),
        "built at once": (built_at_once, 0o2775, GROUP),
        "left unfinished": (left_unfinished, 0o1777, 0),
        "stale claim, sticky": (stale_claim, 0o1777, 0),
        "stale claim, group": (stale_claim, 0o2775, GROUP),
        "studies": (studies, 0o1777, 0),
    }
    for number, (name, (scenario, mode, group)) in enumerate(scenarios.items()):
        found = scenario(Place(scratch / str(number), given, mode, group))
        print(json.dumps([name, found]), file=sys.__stdout__, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
