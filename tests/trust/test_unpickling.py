"""Pickles, arrays of objects and names of code, planted wherever something is read: nothing of it acts.

What a run folder or a study folder holds may have been written by someone else who can write there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.orchestrator import cli
from ablatrix.orchestrator.report import curve_cache
from ablatrix.orchestrator.report.build import build
from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.batches import open_tokens
from ablatrix.trainer.data.token_store import CompleteStore
from ablatrix.trainer.rundir.errors import DataError
from tests.support.evidence import Cases, Tally
from tests.support.fake_slurm import FakeSlurm
from tests.support.studies import Plan, write_study
from tests.support.workspace import Workspace
from tests.trust import forged

MODULE = "planted_module"
Say = Callable[..., str]


class Seen:
    """What the interpreter was asked to find for a pickle, or to import, while it is watched."""

    def __init__(self) -> None:
        self.watching, self.events = False, list[str]()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and (event == "pickle.find_class" or (event == "import" and arguments[0] == MODULE)):
            self.events.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def hook() -> Seen:
    return Seen()  # it cannot be taken off again


@pytest.fixture
def seen(hook: Seen) -> Iterator[Seen]:
    hook.events, hook.watching = [], True
    yield hook
    hook.watching = False


def plant_everywhere(folder: Path, canary: Path) -> int:
    """Malicious files under every name that anything here or in submitit reads or writes; how many."""
    gadgets = list(forged.gadgets(canary).values())
    plain = [pickle.dumps(gadget) for gadget in gadgets]
    runs = [path.parent for path in folder.glob("*/config.json")]
    names = ["checkpoint-00000001.pt", "model.pt", "best.pt", "checkpoint-00000001.pt.bad", "state.pkl", "loss.npy"]
    places = [run / name for run in runs for name in names]
    logs = folder / "logs" / "submitit"
    jobs = [logs / job for job in ("1", "1_0", "1_1", "%j", "2")]
    ends = ("submitted.pkl", "result.pkl", "0_result.pkl")
    places += [place / f"{job.name}_{end}" for job in jobs for place in (job, logs) for end in ends]
    places += [folder / "study.pkl", folder / "report" / "cache.pkl", folder.parent / "study.pkl"]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(plain[number % len(plain)])
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / curve_cache.CURVES).write_bytes(forged.arrays(canary, "npz"))
    (folder / "report" / ".made.json").write_bytes(plain[0])
    return len(places) + 2


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """A command in this process, on a cluster that only queues."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def say(*words: object, codes: tuple[int, ...] = (0,)) -> str:
        monkeypatch.setattr(sys, "argv", ["orchestrator", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) in codes and "Traceback" not in err, (words, out, err)
        return out + err

    return say


def test_no_verb_unpickles_or_imports(workspace: Workspace, say: Say, seen: Seen, tally: Tally) -> None:
    """A study that submitit has queued; one of its runs names code of somebody else's in its config.json."""
    file = workspace.write_study()
    canary = workspace.folder / "canary"
    assert "queued 7 runs" in say("submit", file, "--launcher", "submitit", "--no-report")
    study = workspace.folder / "out" / "study"
    (workspace.folder / f"{MODULE}.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Named: ...\n")
    name_code(workspace.run_folder("rope") / "config.json")
    planted = plant_everywhere(study, canary)
    fail(workspace.run_folder("cosine"))
    verbs: list[tuple[Any, ...]] = [
        *(("status",), ("status", "--json"), ("show", "rope"), ("show", "baseline"), ("diff", "rope", "baseline")),
        *(("report",), ("report", "--interactive"), ("plan", file), ("show", file, "--run", "rope")),
        ("submit", file, "--launcher", "submitit", "--retry", "--no-report"),
        ("cancel", "--all", "--yes"),
        *(("status",), ("report",)),
        ("submit", file, "--launcher", "submitit", "--retry", "--rerun", "cosine", "--no-report"),
    ]
    for number, words in enumerate(verbs):
        if number == 7:
            planted += plant_everywhere(study, canary)
        say(*words, codes=(0, 1))
        assert seen.events == [] and not canary.exists(), words
    assert MODULE not in sys.modules
    tally("no verb unpickles or imports what a study folder holds", cases=len(verbs), detail=f"{planted} files planted")


def name_code(path: Path) -> None:
    config = json.loads(path.read_text())
    for part in ("feedforward", "norm", "positions"):
        config["model"][part] = f"{MODULE}:Named"
    config["model"] |= {"rope": False, "swiglu": False, "rmsnorm": False}
    config["callbacks"]["custom"] = [f"{MODULE}:Named"]
    path.write_text(json.dumps(config))


def fail(run: Path) -> None:
    """Its job has started, and said that it failed."""
    event = {"time": 1.0, "host": "h", "pid": 1, "event": "failed", "reason": "planted"}
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({**event, "event": "started"}) + "\n" + json.dumps(event) + "\n")


def test_the_hook_sees_what_is_unpickled(seen: Seen, tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    pickle.loads(pickle.dumps(forged.gadgets(tmp_path / "canary")["open"]))
    np.load(io.BytesIO(forged.arrays(tmp_path / "canary2", "npz")), allow_pickle=True)["train"]
    assert len(seen.events) >= 2 and (tmp_path / "canary").exists() and (tmp_path / "canary2").exists()


# ---- the report's cache ----------------------------------------------------------------------------------------------


def test_a_damaged_cache_of_curves_is_not_believed(tmp_path: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Each bit of it flipped, each end cut off: what is read of it is what was written, or nothing."""
    states = write_study(tmp_path, Plan(seeds=(1,), features={}, cells={"baseline": []}, rows=4, evaluations=2))
    build(tmp_path, states)
    path = tmp_path / "report" / curve_cache.CURVES
    whole, known = path.read_bytes(), curve_cache.load(path)
    assert len(known) == 1
    chance, number = random.Random(seed), cases(400, 6000)
    kept = 0
    for _ in range(number):
        damaged, bit = bytearray(whole), chance.randrange(len(whole) * 8)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged if chance.random() < 0.7 else whole[: bit // 8])
        found = curve_cache.load(path)
        kept += bool(found)
        for digest, curve in found.items():
            assert repr(curve) == repr(known[digest]) and curve.train.tobytes() == known[digest].train.tobytes()
    tally("a damaged cache of curves gives the true ones or none", cases=number, detail=f"{kept} still true")


@pytest.mark.parametrize("kind", ["arrays of objects", "one such array", "a pickle", "packed zeros", "nothing", "text"])
def test_a_malicious_cache_of_curves_does_not_act(tmp_path: Path, seen: Seen, kind: str) -> None:
    canary = tmp_path / "canary"
    states = write_study(tmp_path, Plan(seeds=(1,), features={}, cells={"baseline": []}, rows=4, evaluations=2))
    build(tmp_path, states)
    before = (tmp_path / "report" / "report.html").read_bytes()
    path, made = tmp_path / "report" / curve_cache.CURVES, tmp_path / "report" / ".made.json"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "arrays of objects": forged.arrays(canary, "npz"),
            "one such array": forged.arrays(canary, "npy"),
            "a pickle": pickle.dumps(forged.gadgets(canary)["os.system"]),
            "packed zeros": forged.changed(whole, "train.npy", bytes(1 << 26), packed=True),
            "nothing": b"",
            "text": b"curves",
        }[kind]
    )
    made.unlink()
    build(tmp_path, states)
    assert (tmp_path / "report" / "report.html").read_bytes() == before
    assert seen.events == [] and not canary.exists() and path.read_bytes() == whole


# ---- token caches ----------------------------------------------------------------------------------------------------


def test_a_malicious_token_cache_does_not_act(
    corpus: Path, offline_cache: Path, tmp_path: Path, seen: Seen, tally: Tally
) -> None:
    """It is made anew, also where the sizes in meta.json were made to fit."""
    canary, data, folder = tmp_path / "canary", tmp_path / "data.jsonl", tmp_path / "cache"
    data.write_text("".join(corpus.read_text().splitlines(keepends=True)[:6]))
    shutil.copytree(offline_cache, folder, ignore=shutil.ignore_patterns("tokens"))
    config = DataConfig(file_path=str(data), tokenizer="sample", block_size=8, test_size=2)
    store = open_tokens(config, folder)
    assert isinstance(store, CompleteStore)
    path, meta = store.folder / "offsets.npy", store.folder / "meta.json"
    whole, told, wanted = path.read_bytes(), json.loads(meta.read_text()), np.array(store.offsets)
    other = io.BytesIO()
    np.save(other, np.zeros((1, told["lines"] + 1), "<i8"))
    files = {"a pickle": pickle.dumps(forged.gadgets(canary)["os.system"]), "another shape": other.getvalue()}
    files |= {"objects": forged.arrays(canary, "npy"), "nothing": b"", "longer": whole + bytes(8), "a bit": b"\x92"}
    files["a bit"] += whole[1:]
    for content in files.values():
        path.write_bytes(content)
        meta.write_text(json.dumps({**told, "offsets_bytes": len(content)}))
        with pytest.raises(DataError, match=r"offsets.npy: damaged; remove the folder .* and start the run again"):
            CompleteStore(store.folder, told)
        np.testing.assert_array_equal(open_tokens(config, folder).offsets, wanted)
        assert path.read_bytes() == whole and seen.events == [] and not canary.exists()
    tally("a malicious token cache is made anew and does not act", cases=len(files))
