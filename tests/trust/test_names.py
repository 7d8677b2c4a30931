"""Names are allow-listed wherever they stand: in experiment files, on the command line, and in what a folder says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.report import collect, output
from ablatrix.orchestrator.status import removed_files
from ablatrix.orchestrator.store import code_snapshot, provenance, study_dir
from ablatrix.trainer.data import data_sets, tokenizer, warm_cache
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError, OfflineCacheError, UserError
from ablatrix.trainer.rundir.events import read_events
from tests.conftest import Verb
from tests.support.evidence import Tally
from tests.support.trees import list_tree
from tests.support.workspace import Workspace

# Not the name of a folder below the one where it stands, or not the same everywhere
BAD = (
    *("", ".", "..", "../victim", "../../victim", "/etc", "a/b", "~", "~/x", ".hidden", "-rf", "--help", "a b", " a"),
    *("a\nb", "a\n#SBATCH --wrap=x", "a\tb", "a'b", 'a"b', "$(touch CANARY)", "`a`", "a;b", "a*b", "{a}", "a%j", "a:b"),
    *("a,b", "a=b", "#a", "é", "x" * 81),
)
GOOD = ("a", "A1", "0", "study.json", "a.b", "a+b-c_d.e", "x" * 80)
RUN = "baseline-seed1-0a1b2c3d"
FILE: dict[str, Any] = {
    "name": "study",
    "command": ["/bin/true", "{flags}"],
    "metrics": {"csv": "a.csv"},
    "base": {"x": 1},
    "features": {"f": {"x": 2}},
    "cells": {"c": ["f"]},
}
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "experiment": lambda name: {"name": name},
    "feature": lambda name: {"features": {name: {"x": 2}}, "cells": {}},
    "level": lambda name: {"features": {"f": {"levels": {name: {"x": 2}}}}, "cells": {}},
    "cell": lambda name: {"cells": {name: ["f"]}},
    "option": lambda name: {"slurm": {"extra": {name: "x"}}},
}


@pytest.fixture(autouse=True)
def _in_an_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder beside the studies that looks like a run's; it must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event": "queued", "launcher": "sbatch", "job_id": "7", "attempt": 1}\n')
    (folder / "loss.csv").write_text("iter,loss\n1,2\n")
    before = list_tree(folder)
    yield folder
    assert list_tree(folder) == before


# ---- experiment files


@pytest.mark.parametrize("place", PLACES)
def test_a_bad_name_is_refused_before_anything_is_created(tmp_path: Path, verb: Verb, place: str) -> None:
    for name in BAD if place == "experiment" else ("..", "a/b", "a b", "a\n#SBATCH --wrap=x", "$(touch CANARY)", "é"):
        (tmp_path / "e.yaml").write_text(json.dumps({**FILE, **PLACES[place](name)}))

        code, _, errors = verb("submit", "e.yaml", "--launcher", "local")

        assert (code, errors.count("\n")) == (2, 1), (name, errors)
        assert errors.startswith("error: ")
        assert os.listdir(tmp_path) == ["e.yaml"]


@pytest.mark.parametrize("place", ["experiment", "feature", "level", "cell"])
def test_a_good_name_is_accepted(tmp_path: Path, verb: Verb, place: str) -> None:
    for name in GOOD:
        (tmp_path / "e.yaml").write_text(json.dumps({**FILE, **PLACES[place](name)}))
        assert verb("plan", "e.yaml", "--launcher", "local")[::2] == (0, ""), name


@pytest.mark.parametrize("option", ["outp", "output", "job", "comm", "exp", "export", "arr", "wra", "o", "W"])
def test_options_that_ablatrix_sets_cannot_be_given_again(tmp_path: Path, verb: Verb, option: str) -> None:
    """sbatch takes the beginning of an option's name for the whole."""
    (tmp_path / "e.yaml").write_text(json.dumps({**FILE, **PLACES["option"](option)}))
    code, _, errors = verb("plan", "e.yaml", "--launcher", "local")
    assert code == 2
    assert "set by Ablatrix itself" in errors


@pytest.mark.parametrize("option", ["cpus_per_task", "N", "time", "gpus-per-node", "p"])
def test_an_option_that_is_a_setting_is_checked_as_one(tmp_path: Path, verb: Verb, option: str) -> None:
    (tmp_path / "e.yaml").write_text(json.dumps({**FILE, "slurm": {"extra": {option: ["no", {"value": "of it"}]}}}))
    code, _, errors = verb("plan", "e.yaml", "--launcher", "local")
    assert code == 2
    assert errors.startswith("error: e.yaml:1: slurm.")


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path, verb: Verb) -> None:
    """A file system that ignores case would mix their files."""
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps({**FILE, "features": {"rope": {"x": 2}, "Rope": {"x": 3}}, "cells": {}}))
    assert "features: rope and Rope differ only in case" in verb("plan", "e.yaml", "--launcher", "local")[2]
    path.write_text(json.dumps(FILE))
    (tmp_path / "out/Study").mkdir(parents=True)
    assert "differs from study only in case" in verb("plan", "e.yaml", "--launcher", "local")[2]
    (tmp_path / "out/study").mkdir()  # both exist: this file system tells them apart
    assert verb("plan", "e.yaml", "--launcher", "local")[0] == 0


@pytest.mark.parametrize(
    ("name", "launcher", "words"),
    [
        ("co:lon", "local", "a colon would split the path"),
        ("back\\slash", "sbatch", "Slurm finds no log in a path with a backslash"),
        (os.fsdecode(b"\xff"), "local", "not valid UTF-8"),
        ("new\nline", "sbatch", "control characters cannot be used with Slurm"),
        ("a%jb", "submitit", "submitit expands % in paths"),
    ],
)
def test_a_folder_that_a_job_cannot_use_is_refused(
    tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch, name: str, launcher: str, words: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    Path("e.yaml").write_text(json.dumps(FILE))
    code, _, errors = verb("submit", "e.yaml", "--launcher", launcher)
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors
    assert os.listdir() == ["e.yaml"]


@pytest.mark.parametrize("folder", ["-rf", "./-x"])
def test_an_output_folder_that_looks_like_an_option_is_refused(tmp_path: Path, verb: Verb, folder: str) -> None:
    (tmp_path / "e.yaml").write_text(json.dumps({**FILE, "output": folder}))
    code, _, errors = verb("submit", "e.yaml", "--launcher", "local")
    assert code == 2
    assert "output: a path that begins with - would be taken for an option" in errors
    assert os.listdir(tmp_path) == ["e.yaml"]


# ---- the command line


def test_a_path_out_of_the_study_is_no_run(tmp_path: Path, victim: Path, verb: Verb, tally: Tally) -> None:
    write_study(tmp_path / "out" / "study", RUN)
    before = list_tree(tmp_path)
    paths = ("..", "../..", "../victim", "../../victim", "/etc", "victim/", "~", "*")
    for path in paths:
        for words in (("show",), ("logs",), ("cancel", "-y"), ("diff", "baseline")):
            code, _, errors = verb(*words, "--", path)
            assert code == 2, (words, path, errors)
            assert "no such run" in errors
        assert verb("show", "--study", path, "baseline")[0] == 2
    assert list_tree(tmp_path) == before
    tally("a run named by a path out of the study does not exist", 5 * len(paths), "0 files touched")


# ---- what is read back from a shared folder


def write_study(folder: Path, name: object) -> Path:
    """Write a study.json with one run of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {"id": name, "cell": "baseline", "seed": 1, "features": [], "overrides": {}}
    record = {"name": "study", "file": "x.yaml", "created": 1.0, "features": {}, "info": {}, "runs": [run]}
    (folder / "study.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", ["..", "../../victim", "/etc", "", ".", "a/../../victim", None, 7])
def test_a_study_json_that_names_another_folder_is_refused(tmp_path: Path, victim: Path, name: object) -> None:
    study = write_study(tmp_path / "out" / "study", name)
    with pytest.raises(UserError, match="corrupt"):
        study_dir.load_study(study)
    with pytest.raises(UserError, match="corrupt"):
        collect.read_study(study, {})


def test_verbs_refuse_a_study_json_that_names_another_folder(tmp_path: Path, victim: Path, verb: Verb) -> None:
    write_study(tmp_path / "out" / "study", "../../victim")
    for words in (("status",), ("report",), ("show", "baseline"), ("logs", "baseline"), ("cancel", "--all", "-y")):
        code, _, errors = verb(*words)
        assert (code, errors.count("\n")) == (2, 1), errors


@pytest.mark.parametrize("name", ["..", "../../victim/loss.csv", "/etc/passwd"])
def test_a_runs_record_cannot_name_code_or_files_elsewhere(work: Workspace, name: str) -> None:
    folder = next((work.folder / "out" / "study").glob("baseline-*"))
    record = json.loads((folder / run_files.PROVENANCE).read_text())
    (folder / run_files.PROVENANCE).write_text(json.dumps({**record, "code_snapshot": name}))
    events = read_events(folder)
    events[-1]["files"] = [*events[-1]["files"], name]

    runs = study_dir.load_study(folder.parent).runs
    assert provenance.snapshots_of(run.folder for run in runs).keys() <= {record["code_snapshot"]}
    assert removed_files.of_run(folder, events) == ()


def test_a_reports_manifest_removes_nothing_elsewhere(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "report"
    output.refresh(folder, "first", lambda: {"report.md": "first"})
    record = json.loads((folder / output.MANIFEST).read_text())
    digest = hashlib.sha256((victim / "loss.csv").read_bytes()).hexdigest()
    record["files"] |= dict.fromkeys([str(victim / "loss.csv"), "../victim/loss.csv", "../victim", ".."], digest)
    (folder / output.MANIFEST).write_text(json.dumps(record))
    assert output.refresh(folder, "second", lambda: {"report.md": "second"}) == (folder / "report.md",)
    assert (folder / "report.md").read_text() == "second"


# ---- caches and snapshots


@pytest.mark.parametrize("name", ["..", "../victim", "/etc", ".", "~/x", "a/../../victim", "-rf", "a\nb", ""])
def test_a_tokenizer_named_by_a_path_is_refused(tmp_path: Path, victim: Path, name: str) -> None:
    before = list_tree(tmp_path)
    with pytest.raises((UserError, OfflineCacheError)):
        tokenizer.find(name, tmp_path / "cache")
    assert warm_cache.main([f"--tokenizer={name}", "--cache-dir", str(tmp_path / "cache")]) == 2
    assert list_tree(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "a/..", "../victim/loss.csv", "/etc/passwd", "a//b", "a/./b"])
def test_a_data_file_named_by_a_path_is_refused(tmp_path: Path, victim: Path, name: str) -> None:
    with pytest.raises(UserError, match="not the path of a file"):
        data_sets.warm_data("owner/name", name, tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("files", [{"../../../etc/passwd": {"size": 1}}, {"vocab.json": 7}, {}, None])
def test_a_doctored_cache_manifest_is_refused(tmp_path: Path, offline_cache: Path, files: object) -> None:
    manifest = json.loads((offline_cache / "manifest.json").read_text())
    manifest["tokenizers"]["sample"]["files"] = files
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OfflineCacheError):
        tokenizer.find("sample", tmp_path)


def test_a_changed_code_snapshot_is_restored(tmp_path: Path, tally: Tally) -> None:
    """Jobs run what is in it: files that differ are written again, links in it are not followed."""
    store, outside = tmp_path / ".snapshots", tmp_path / "outside.py"
    code = code_snapshot.take(store)
    outside.write_text("raise SystemExit\n")
    loop, run = code / "ablatrix/trainer/loop.py", code / "ablatrix/trainer/run.py"
    good = loop.read_bytes()
    loop.write_text("import evil\n")
    run.unlink()
    run.symlink_to(outside)

    assert code_snapshot.take(store) == code

    assert loop.read_bytes() == good
    assert not run.is_symlink()
    assert outside.read_text() == "raise SystemExit\n"
    tally("a code snapshot that was changed is restored before a job runs it", 2)


def test_a_code_snapshot_that_is_a_link_is_refused(tmp_path: Path) -> None:
    store = tmp_path / ".snapshots"
    code = code_snapshot.take(store)
    code.rename(tmp_path / "real")
    code.symlink_to(tmp_path / "real")
    with pytest.raises((AblatrixError, OSError), match="link"):
        code_snapshot.take(store)
