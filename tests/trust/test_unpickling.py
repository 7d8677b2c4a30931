"""Pickles, arrays of objects and names of code in shared folders: nothing of them acts.

A study's folder may have been written by someone else who can write there.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.token_store import CompleteStore, Meta
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError
from tests.conftest import Verb
from tests.support.evidence import Tally
from tests.support.fake_slurm import FakeSlurm
from tests.support.workspace import Workspace
from tests.trust import forged

MODULE = "planted_module"


class Watch:
    """An audit hook that notes what the interpreter looks up for a pickle, and an import of MODULE."""

    def __init__(self) -> None:
        self.watching, self.events = False, list[str]()
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and (event == "pickle.find_class" or (event == "import" and arguments[0] == MODULE)):
            self.events.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def hook() -> Watch:
    return Watch()  # it cannot be removed again


@pytest.fixture
def watch(hook: Watch) -> Iterator[Watch]:
    hook.events, hook.watching = [], True
    yield hook
    hook.watching = False


def plant_everywhere(study: Path, canary: Path) -> int:
    """Write malicious files under every name that Ablatrix or submitit reads; return how many."""
    runs = [path.parent for path in study.glob("*/config.json")]
    places = [run / name for run in runs for name in ("checkpoint-00000001.pt", "model.pt", "best.pt")]
    logs = study / "logs" / "submitit"
    ends = ("submitted.pkl", "result.pkl", "0_result.pkl")
    places += [logs / job / f"{job}_{end}" for job in ("1", "1_0", "1_1") for end in ends]
    places += [study / "report" / ".made.json"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pickle.dumps(forged.gadgets(canary)["os.system"]))
    return len(places)


def test_no_verb_unpickles_or_imports(
    workspace: Workspace, verb: Verb, watch: Watch, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that submitit has queued; the configuration of one of its runs names a module of somebody else's."""
    monkeypatch.setenv("PATH", f"{FakeSlurm(workspace.folder / 'slurm').bin}:{os.environ['PATH']}")
    monkeypatch.chdir(workspace.folder)
    monkeypatch.syspath_prepend(workspace.folder)
    file, canary = workspace.write_study(), workspace.folder / "canary"
    assert "queued 7 runs" in verb("submit", file, "--launcher", "submitit", "--no-report")[1]
    study = workspace.folder / "out" / "study"
    (workspace.folder / f"{MODULE}.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Named: ...\n")
    path = workspace.run_folder("rope") / "config.json"
    config = json.loads(path.read_text())
    config["model"] |= {"feedforward": f"{MODULE}:Named", "rope": False}
    config["callbacks"]["custom"] = [f"{MODULE}:Named"]
    path.write_text(json.dumps(config))
    planted = plant_everywhere(study, canary)
    verbs: list[tuple[Any, ...]] = [
        ("status",),
        ("status", "--json"),
        ("show", "rope"),
        ("diff", "rope", "baseline"),
        ("report",),
        ("plan", file),
        ("submit", file, "--launcher", "submitit", "--retry", "--no-report"),
        ("cancel", "--all", "--yes"),
        ("submit", file, "--launcher", "submitit", "--retry", "--rerun", "cosine", "--no-report"),
    ]
    for words in verbs:
        assert verb(*words)[0] in (0, 1), words
        assert watch.events == [], words
        assert not canary.exists(), words
    assert MODULE not in sys.modules
    tally("no verb unpickles or imports what a study folder holds", cases=len(verbs), detail=f"{planted} files planted")


def test_the_hook_notes_what_is_unpickled(watch: Watch, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    pickle.loads(pickle.dumps(forged.gadgets(tmp_path / "canary")["open"]))
    np.load(io.BytesIO(forged.arrays(tmp_path / "canary2")), allow_pickle=True)["train"]
    assert len(watch.events) >= 2
    assert (tmp_path / "canary").exists()
    assert (tmp_path / "canary2").exists()


@pytest.mark.parametrize("kind", ["objects", "a pickle", "another shape", "nothing"])
def test_a_malicious_or_damaged_token_cache_is_made_again(
    corpus: Path, offline_cache: Path, tmp_path: Path, watch: Watch, kind: str
) -> None:
    canary, data, folder = tmp_path / "canary", tmp_path / "data.jsonl", tmp_path / "cache"
    data.write_text("".join(corpus.read_text().splitlines(keepends=True)[:6]))
    shutil.copytree(offline_cache, folder, ignore=shutil.ignore_patterns("tokens"))
    config = DataConfig(file_path=str(data), tokenizer="sample", block_size=8, test_size=2)
    store = open_tokens(config, folder)
    assert isinstance(store, CompleteStore)
    path, record = store.folder / "offsets.npy", json.loads((store.folder / "meta.json").read_text())
    whole, offsets = path.read_bytes(), np.array(store.offsets)
    objects, shape = io.BytesIO(), io.BytesIO()
    np.save(objects, forged.gadgets(canary)["an array of objects"], allow_pickle=True)
    np.save(shape, np.zeros((1, record["lines"] + 1), "<i8"))
    contents = {
        "objects": objects.getvalue(),
        "a pickle": pickle.dumps(forged.gadgets(canary)["os.system"]),
        "another shape": shape.getvalue(),
        "nothing": b"",
    }
    path.write_bytes(contents[kind])
    with pytest.raises(DataError, match=r"offsets.npy: corrupt; remove the folder .* and start the run again"):
        CompleteStore(store.folder, Meta.model_validate(record))

    np.testing.assert_array_equal(open_tokens(config, folder).offsets, offsets)

    assert path.read_bytes() == whole
    assert watch.events == []
    assert not canary.exists()
