"""Names that try to lead out of their folder: typed, in an experiment file, or in what is read back from a folder."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ablatrix.orchestrator import cli
from ablatrix.orchestrator.report import collect, output
from ablatrix.orchestrator.status import removed_files
from ablatrix.orchestrator.store import code_snapshot, provenance, study_dir
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.data import tokenizer, warm_cache
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, OfflineCacheError, UserError
from tests.support.evidence import Cases, Tally
from tests.support.workspace import Workspace

PIECES = (
    "..",
    ".",
    "/",
    "~",
    "~root",
    "\0",
    "\n",
    "\r",
    " ",
    "a",
    "etc",
    "victim",
    "%2e%2e",
    "\\",
    "..\\",
    "\u202e",
    "-x",
    "*",
)
FIXED = (
    "..", "../..", "../victim", "../../victim", "/etc", "/", "", ".", "./x", "~", "~/x", "a/../../victim", "victim/",
    "x/", "a\0b", "a\nb", "..\n", ".hidden", "-rf", "a b", "$(touch x)", "é",
)  # fmt: skip
GOOD = "baseline-seed1-0a1b2c3d"


def hostile(seed: int, count: int) -> list[str]:
    """Names that are not those of a folder within the study: the fixed ones, then random ones."""
    draw = random.Random(seed)
    names = list(FIXED)
    while len(names) < count:
        name = "".join(draw.choices(PIECES, k=draw.randint(1, 6)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            names.append(name)
    return names


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_mode, 0 if path.is_dir() else status.st_mtime_ns, content)
    return found


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the studies that looks like a run's, and must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event": "queued", "launcher": "sbatch", "job_id": "7", "attempt": 1}\n')
    (folder / "loss.csv").write_text("iter,loss\n1,2\n")
    before = tree(folder)
    yield folder
    assert tree(folder) == before


@pytest.fixture
def verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """verb(*words): exit code and stderr of `python -m orchestrator WORDS` in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrator", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def write_study(folder: Path, *names: object) -> Path:
    """A study.json with runs of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [{"id": name, "cell": "baseline", "seed": 1, "features": [], "overrides": {}} for name in names]
    record = {"name": "study", "file": "x.yaml", "created": 1.0, "features": {}, "info": {}, "runs": runs}
    (folder / "study.json").write_text(json.dumps(record))
    return folder


def test_a_doctored_study_leads_nowhere(
    tmp_path: Path, victim: Path, verb: Callable[..., tuple[int, str]], seed: int, cases: Cases, tally: Tally
) -> None:
    study = tmp_path / "out" / "study"
    names: list[object] = [*hostile(seed, cases(60, 3000)), None, 7, ["..", "victim"], str(victim)]
    for name in names:
        write_study(study, GOOD, name)
        with pytest.raises(UserError, match=r"study\.json: damaged"):
            study_dir.load_study(study)
        if isinstance(name, str):
            with pytest.raises(UserError, match="damaged"):
                collect.read_study(study, {})
    write_study(study, "../../victim")
    for words in (("status",), ("report",), ("show", "baseline"), ("logs", "baseline"), ("cancel", "--all", "-y")):
        code, told = verb(*words)
        assert (code, len(told.splitlines())) == (2, 1), told
    write_study(study, GOOD)
    assert study_dir.load_study(study).runs[0].folder == study / GOOD
    tally(
        "a study.json that names a run's folder elsewhere is refused", len(names) + 5, "0 files touched, 0 tracebacks"
    )


def test_names_at_the_command_line(
    tmp_path: Path, victim: Path, verb: Callable[..., tuple[int, str]], seed: int, cases: Cases, tally: Tally
) -> None:
    write_study(tmp_path / "out" / "study", GOOD)
    before = tree(tmp_path)
    typed = [name for name in hostile(seed, cases(25, 300)) if "\0" not in name and name not in ("", "..\n")]
    commands = [("show", "--", name) for name in typed] + [("logs", "--", name) for name in typed]
    commands += [("cancel", "-y", "--", name) for name in typed] + [("diff", "--", name, "baseline") for name in typed]
    commands += [("show", "--study", name, "baseline") for name in typed if name not in (".", "./x")]
    for words in commands:
        code, told = verb(*words)
        assert code == 2, (words, told)
        assert re.search("no such run|no study there|holds no study|Missing argument", told), (words, told)
    assert tree(tmp_path) == before
    tally("a run or study that is named with a path out of the study is not found", len(commands), "0 files touched")


def test_a_doctored_run_leads_nowhere(work: Workspace, seed: int, cases: Cases, tally: Tally) -> None:
    """Its provenance.json names a folder of code, its last event names files."""
    verbs = ("status", "report", "show baseline")
    folder = next((work.folder / "out" / "study").glob("baseline-*"))
    record_file, events = folder / run_files.PROVENANCE, (folder / run_files.EVENTS).read_text()
    record = json.loads(record_file.read_text())
    (work.folder / "out" / "big").touch()
    os.truncate(work.folder / "out" / "big", 1 << 40)
    names = hostile(seed, cases(25, 200))
    study = study_dir.load_study(folder.parent)
    for name in names:
        record_file.write_text(json.dumps({**record, "code_snapshot": name}))
        assert provenance.snapshots_of(run.folder for run in study.runs).keys() <= {record["code_snapshot"]}
        *before, last = map(json.loads, events.splitlines())
        told = removed_files.of_run(folder, [*before, {**last, "files": [*last["files"], name, None, [name]]}])
        assert set(told) <= {name}, "files of its own only"
        assert not told or not re.search(r"(^|/)\.\.(/|$)|^/|[\0-\x1f]", name)
    for name in ("..", ".", "a\0b"):
        record_file.write_text(json.dumps({**record, "code_snapshot": name}))
        (folder / run_files.EVENTS).write_text(events.replace('"files": [', f'"files": [{json.dumps(name)}, '))
        for verb in verbs:
            assert "Traceback" not in work.run(*verb.split(), code=0).stderr
    tally("a run's record that names code or files elsewhere leads nowhere", len(names) + 9, "0 tracebacks")


def test_names_in_experiment_files(tmp_path: Path, victim: Path, seed: int, cases: Cases, tally: Tally) -> None:
    before = tree(tmp_path)
    names = hostile(seed, cases(30, 400))
    places = (
        "name: {0}\nfeatures: {{rope: {{model.rope: true}}}}\n",
        "name: x\nfeatures: {{{0}: {{model.rope: true}}}}\n",
        "name: x\nfeatures: {{size: {{levels: {{{0}: {{model.n_layer: 2}}}}}}}}\n",
        "name: x\nfeatures: {{rope: {{model.rope: true}}}}\ncells: {{{0}: [rope]}}\n",
    )
    path = tmp_path / "study.yaml"
    for name in names:
        for place in places:
            path.write_text(place.format(json.dumps(name)), encoding="utf-8")
            with pytest.raises((ConfigError, UserError)):
                load_experiment(path)
    path.unlink()
    assert tree(tmp_path) == before
    tally(
        "an experiment, feature, level or cell named with a path is refused", len(names) * len(places), "0 files made"
    )


def test_a_doctored_report_manifest_removes_nothing(
    tmp_path: Path, victim: Path, seed: int, cases: Cases, tally: Tally
) -> None:
    folder = tmp_path / "report"
    names = [*hostile(seed, cases(60, 2000)), str(victim / "loss.csv"), "../victim/loss.csv", "../victim"]
    for name in names:
        output.refresh(folder, "first", lambda: {"report.md": "first"})
        record = json.loads((folder / output.MANIFEST).read_text())
        record["files"][name] = hashlib.sha256(b"").hexdigest()
        (folder / output.MANIFEST).write_text(json.dumps(record))
        made = output.refresh(folder, "second", lambda: {"report.md": "second"})
        assert made == (folder / "report.md",)
        assert (folder / "report.md").read_text() == "second"
        (folder / output.MANIFEST).unlink()
        (folder / "report.md").unlink()
    tally("a report's list of files that is doctored removes nothing elsewhere", len(names))


def test_names_of_tokenizers_and_data(tmp_path: Path, victim: Path, seed: int, cases: Cases, tally: Tally) -> None:
    before = tree(tmp_path)
    names = [name for name in hostile(seed, cases(60, 1000)) if not re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    for name in names:
        with pytest.raises((UserError, OfflineCacheError)):
            tokenizer.find(name, tmp_path / "cache")
        assert warm_cache.main([f"--tokenizer={name}", "--cache-dir", str(tmp_path / "cache")]) == 2
    for name in ("..", "a/..", "../victim/loss.csv", "/etc/passwd", "a//b", "a/\nb", "a/./b"):
        with pytest.raises(UserError, match="not the path of a file"):
            warm_cache.warm_data("owner/name", name, tmp_path / "data", tmp_path / "cache")
    assert tree(tmp_path) == before
    tally("a tokenizer or data file named with a path is refused before anything is made", len(names) + 7)


def test_cache_files_that_are_not_what_they_were(tmp_path: Path, offline_cache: Path, tally: Tally) -> None:
    """A manifest that somebody has changed is an error of one sentence, a claim no reason to fail."""
    cache = tmp_path / "cache"
    cache.mkdir()
    good = json.loads((offline_cache / "manifest.json").read_text())
    entry = good["tokenizers"]["sample"]
    broken = [
        {**good, "tokenizers": {"sample": {**entry, "files": {"../../../etc/passwd": {"size": 1}}}}},
        {**good, "tokenizers": {"sample": {**entry, "files": {"vocab.json": 7}}}},
        {**good, "tokenizers": {"sample": {**entry, "files": None}}},
        {**good, "tokenizers": {"sample": {"files": {}}}},
        {**good, "tokenizers": {"sample": "../.."}},
        {**good, "tokenizers": ["sample"]},
    ]
    for record in broken:
        (cache / "manifest.json").write_text(json.dumps(record))
        with pytest.raises(OfflineCacheError):
            tokenizer.find("sample", cache)
    owners = ("", "[]", "{", '{"pid": "../..", "machine": 7}', '{"host": {}, "pid": null}', "\0")
    for text in owners:
        with Claims(cache, stale=0.0) as claims:
            (cache / "x").mkdir(exist_ok=True)
            (cache / "x" / "owner.json").write_text(text)
            assert any(claims.acquire("x", take_over=True) for _ in range(3))
    tally("a manifest or claim that was doctored is refused or taken over", len(broken) + len(owners))


def test_a_changed_code_snapshot_is_not_run(tmp_path: Path, tally: Tally) -> None:
    """Jobs run what is in it: files that differ are put back, links in it are not followed."""
    store = tmp_path / ".snapshots"
    code = code_snapshot.take(store)
    outside = tmp_path / "outside.py"
    outside.write_text("raise SystemExit\n")
    good = (code / "trainer" / "loop.py").read_bytes()
    (code / "trainer" / "loop.py").write_text("import evil\n")
    (code / "trainer" / "run.py").unlink()
    (code / "trainer" / "run.py").symlink_to(outside)
    assert code_snapshot.take(store) == code
    assert (code / "trainer" / "loop.py").read_bytes() == good
    assert not (code / "trainer" / "run.py").is_symlink()
    assert outside.read_text() == "raise SystemExit\n"
    os.rename(code, tmp_path / "real")
    code.symlink_to(tmp_path / "real")
    with pytest.raises((AblatrixError, OSError), match="link"):
        code_snapshot.take(store)
    tally("a code snapshot that was changed is put right before a job runs it", 3)
