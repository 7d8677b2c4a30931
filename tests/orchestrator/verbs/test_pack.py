"""An archive of a study: its bytes, what is in it, and what a replay finds wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.orchestrator.report.collect import of_study
from ablatrix.orchestrator.report.homogeneity import Noise
from ablatrix.orchestrator.report.replayed import Outcome, Pair, judge
from ablatrix.orchestrator.store import archive, study_dir
from ablatrix.orchestrator.terminal.printing import open_console
from ablatrix.orchestrator.verbs.pack import pack
from ablatrix.orchestrator.verbs.replay import Options, Result, compare, make_result, open_archive, replay
from ablatrix.trainer.rundir.errors import UserError
from tests.support.forked_python import ForkedPython
from tests.support.studies import FEATURES, Plan, change_record, write_study
from tests.support.workspace import Workspace

pytestmark = pytest.mark.xdist_group("pack")  # the archive is made once

Files = dict[str, bytes]
SECRET = "hf_thisIsNoRealTokenButLooksLikeOne"


@pytest.fixture(scope="module")
def packed(
    tmp_path_factory: pytest.TempPathFactory, offline_cache: Path, corpus: Path, forked_python: ForkedPython
) -> Workspace:
    """A finished study of two cells and two seeds, with its report and its archive `study.ablatrix.zip`."""
    folder = tmp_path_factory.mktemp("packed")
    workspace = Workspace(folder, corpus, offline_cache, {"HF_TOKEN": SECRET}, forked_python.python)
    (folder / "base.yaml").write_text(workspace.write_study(iters=10, ckpt=5).read_text().partition("features:")[0])
    features = "features: {swiglu: {model.swiglu: true}}\ndesign: [baseline, one_at_a_time]\nseeds: [1, 2]\n"
    (folder / "study.yaml").write_text(f"extends: base.yaml\n{features}")
    workspace.run("submit", "study.yaml", "--launcher", "local")
    workspace.run("report", "study")
    workspace.run("pack", "study")
    return workspace


def read(path: Path) -> Files:
    with zipfile.ZipFile(path) as made:
        return {name: made.read(name) for name in made.namelist()}


@pytest.fixture(scope="module")
def files(packed: Workspace) -> Files:
    return read(packed.folder / "study.ablatrix.zip")


def write(path: Path, files: Files, honest: bool) -> Path:
    """Write an archive again, with a manifest of these files, or (honest) the one that is among them."""
    if honest:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in files.items():
                made.writestr(name, content)
    else:
        facts = {k: v for k, v in json.loads(files[archive.MANIFEST]).items() if k != "files"}
        archive.write(path, {k: v for k, v in files.items() if k != archive.MANIFEST}, facts)
    return path


def test_the_archive_has_everything_but_secrets_and_weights(packed: Workspace, files: Files) -> None:
    kept = {name.partition("/")[2] for name in files if name.startswith("study/baseline-seed1-")}
    names = {name.rpartition("/")[2] for name in kept}
    assert {"loss.csv", "config.json", "args.txt", "summary.json", "provenance.json", "val_documents.json"} <= names
    assert not {"model.pt", "job.out"} & names and not any(name.endswith(".pt") for name in names)
    assert files["experiment/study.yaml"] == (packed.folder / "study.yaml").read_bytes()
    assert files["experiment/base.yaml"] == (packed.folder / "base.yaml").read_bytes()
    assert {"study/report/report.html", "environment.txt", "study/study.json"} <= files.keys()
    assert any(re.fullmatch(r"\.snapshots/[0-9a-f]{16}/ablatrix/trainer/loop\.py", name) for name in files)
    assert re.search(rb"^torch==2", files["environment.txt"], re.MULTILINE)
    assert not any(SECRET.encode() in content for content in files.values())


def test_the_same_study_gives_the_same_bytes(packed: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed.folder)
    for path in (packed.folder / "out").rglob("*.py"):
        os.utime(path)
    again = pack("study", Path("again.zip"), Path("out"), open_console())
    assert again.read_bytes() == (packed.folder / "study.ablatrix.zip").read_bytes()
    pack("study", Path("weights.zip"), Path("out"), open_console(), checkpoints=True)
    assert sum(name.endswith("model.pt") for name in read(packed.folder / "weights.zip")) == 4


def find(files: Files, ending: str) -> str:
    return next(name for name in sorted(files) if re.search(ending, name))


def edit(ending: str, old: str, new: str) -> Callable[[Files], None]:
    """Replace the first match of `old` in the first file whose name ends so."""

    def change(files: Files) -> None:
        name = find(files, f"{ending}$")
        text, count = re.subn(old, new, files[name].decode(), count=1, flags=re.MULTILINE)
        assert count and text.encode() != files[name]
        files[name] = text.encode()

    return change


def cut(ending: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        name = find(files, f"{ending}$")
        files[name] = files[name][: len(files[name]) // 2]

    return change


def remove(pattern: str, listed: str = "") -> Callable[[Files], None]:
    """Remove files, and the runs of study.json whose ids match `listed`."""

    def change(files: Files) -> None:
        for name in [name for name in files if re.search(pattern, name)]:
            del files[name]
        record = json.loads(files["study/study.json"])
        record["runs"] = [run for run in record["runs"] if not (listed and re.match(listed, run["id"]))]
        files["study/study.json"] = json.dumps(record).encode() if listed else files["study/study.json"]

    return change


def add_run(files: Files) -> None:
    files["study/baseline-seed9-01234567/loss.csv"] = b"iter,loss\n1,2.0\n"


def lead_out(files: Files) -> None:
    manifest = json.loads(files[archive.MANIFEST])
    manifest["files"]["../evil"] = {"bytes": 1, "sha256": ""}
    files[archive.MANIFEST], files["../evil"] = json.dumps(manifest).encode(), b"x"


def invent(files: Files) -> None:
    """Make the baseline of seed 1 better by 1 nat in every file that has its loss, with a digest that fits."""
    loss, summary = find(files, r"baseline-seed1-\w+/loss\.csv"), find(files, r"baseline-seed1-\w+/summary\.json")
    record = json.loads(files[summary])
    before = repr(record["val_nll"])
    record["val_nll"] -= 1.0
    assert before.encode() in files[loss]
    files[loss] = files[loss].replace(before.encode(), repr(record["val_nll"]).encode())
    record["loss_csv"] |= {"bytes": len(files[loss]), "sha256": hashlib.sha256(files[loss]).hexdigest()}
    files[summary] = json.dumps(record).encode()


CONFIG, LOSS, SUMMARY = r"baseline-seed1-\w+/config\.json", r"baseline-seed1-\w+/loss\.csv", r"seed1-\w+/summary\.json"
CODE = r"ablatrix/trainer/config/sections\.py"
# What was done to the archive; whether its manifest was left as it was; what is found
CORRUPTIONS: dict[str, tuple[Callable[[Files], None], bool, str]] = {
    "digit in loss.csv": (edit(LOSS, r"^5,(\d)\.", r"5,9."), True, "loss.csv is not the file that was packed"),
    "cut file": (cut(LOSS), True, "loss.csv is not the file"),
    "changed config.json": (edit(CONFIG, "0.003", "0.004"), True, "config.json is not the file"),
    "run removed": (remove("baseline-seed1-"), True, "loss.csv is listed in manifest.json but missing"),
    "run added": (add_run, True, "baseline-seed9-01234567/loss.csv is not listed"),
    "changed experiment file": (
        edit(r"experiment/study\.yaml", "swiglu: true", "rope: true"),
        True,
        "study.yaml is not",
    ),
    "other defaults in the code": (edit(CODE, "3e-4", "6e-4"), True, "sections.py is not the file"),
    "changed report": (edit(r"report\.md", "NLL", "BLEU"), True, "report.md is not the file"),
    "changed lock": (edit(r"environment\.txt", "^torch==2", "torch==3"), True, "environment.txt is not the file"),
    "no manifest": (remove(r"^manifest\.json"), True, "manifest.json is missing or corrupt"),
    "path that leads out": (lead_out, True, "leads out of the folder"),
    "digit in loss.csv, packed": (edit(LOSS, r"^5,(\d)\.", r"5,9."), False, "loss.csv has been changed since"),
    "cut file, packed": (cut(LOSS), False, "loss.csv has been changed since"),
    "changed config.json, packed": (edit(CONFIG, "0.003", "0.004"), False, "differs from the settings that the run"),
    "other seed, packed": (edit(CONFIG, '"seed": 1', '"seed": 3'), False, "config.json has seed 3, study.json 1"),
    "feature switched off, packed": (
        edit(r"swiglu-seed1-\w+/config\.json", '"swiglu": true', '"swiglu": false'),
        False,
        "config.json lacks settings that study.json has for the cell: model.swiglu",
    ),
    "better result, packed": (
        edit(SUMMARY, r'"val_nll": \d', '"val_nll": 1'),
        False,
        "is not an evaluation in loss.csv",
    ),
    "run removed, packed": (remove("baseline-seed2-", "baseline-seed2"), False, "baseline has 1 run in study.json"),
    "cell removed, packed": (remove("/swiglu-", "swiglu"), False, "swiglu was planned but is not in study.json"),
    "config.json removed, packed": (remove(CONFIG), False, "config.json is missing or corrupt"),
    "other defaults in the code, packed": (edit(CODE, "3e-4", "6e-4"), False, "differs from the code that the runs"),
    "seeds exchanged, packed": (edit(r"study\.json", '"seed": 1', '"seed": 7'), False, "has seed 1, study.json 7"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_found(name: str, files: Files, tmp_path: Path) -> None:
    change, honest, wanted = CORRUPTIONS[name]
    damaged = dict(files)
    change(damaged)
    path = write(tmp_path / "a.zip", damaged, honest)
    with pytest.raises(UserError, match=re.escape(wanted)):
        open_archive(path, tmp_path / "here")
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "here").exists() != honest, "nothing is left of an archive that is not what was packed"


def test_damaged_archives_and_folders_are_refused(packed: Workspace, tmp_path: Path) -> None:
    whole = (packed.folder / "study.ablatrix.zip").read_bytes()
    path = tmp_path / "a.zip"
    with pytest.raises(UserError, match=r"a\.zip: no such archive; give the file that `ablatrix pack` wrote"):
        open_archive(path, tmp_path / "nothing")
    path.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="incomplete or corrupt"):
        open_archive(path, tmp_path / "cut")
    path.write_bytes(whole[:5000] + bytes(200) + whole[5200:])
    with pytest.raises(UserError, match=r"cannot read|is not the file|incomplete or corrupt"):
        open_archive(path, tmp_path / "zeros")
    path.write_bytes(whole)
    folder, _ = open_archive(path, tmp_path / "good")
    (folder / "environment.txt").write_text("")
    with pytest.raises(UserError, match=r"environment\.txt was changed"):
        open_archive(path, folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="is not an unpacked archive"):
        open_archive(path, tmp_path / "other")


def run(path: Path, monkeypatch: pytest.MonkeyPatch, packed: Workspace, **options: Any) -> Result:
    """Replay in the folder of the archive."""
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "executable", packed.python)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return make_result(Options(path, path.parent / "here", **options), open_console())


def test_a_replay_elsewhere_gives_the_same_bits(
    packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed.folder / "study.ablatrix.zip"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", packed.python)
    assert replay(Options(path), open_console()) == 0
    assert "reproduced: bit for bit: every row of 2 runs is the same" in capsys.readouterr().out
    again = study_dir.read_study(tmp_path / "study-replay/replay")
    assert [(run.cell, run.seed) for run in again.runs] == [("baseline", 1), ("swiglu", 1)]
    code = json.loads((again.runs[0].folder / "provenance.json").read_text())["code_snapshot"]
    assert (tmp_path / "study-replay/.snapshots" / code).is_dir()
    assert replay(Options(path, seeds="1-2", cells=["swiglu"]), open_console(of_errors=True), as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [pair["seed"] for pair in shown["runs"]] == [1, 2] and all(pair["identical"] for pair in shown["runs"])


@pytest.mark.parametrize("other_torch", [False, True])
def test_invented_results_are_not_reproduced_and_another_torch_is_named(
    other_torch: bool, packed: Workspace, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = dict(files)
    if other_torch:
        edit(r"baseline-seed1-\w+/provenance\.json", r'"torch": "[^"]*"', '"torch": "2.12.0"')(damaged)
    else:
        invent(damaged)
    path = write(tmp_path / "a.zip", damaged, honest=False)
    result = run(path, monkeypatch, packed, cells=["baseline"], seeds="1")
    assert result.outcome == (Outcome.REPRODUCED if other_torch else Outcome.NOT_REPRODUCED)
    assert [name for name, before, _ in result.differences if before == "2.12.0"] == ["versions.torch"] * other_torch


@pytest.mark.parametrize("changed", ["corpus", "tokenizer", "absent corpus"])
def test_another_corpus_or_tokenizer_is_named_before_anything_runs(
    changed: str, packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes((packed.folder / "study.ablatrix.zip").read_bytes())
    other = tmp_path / "other.jsonl"
    setting = "data.tokenizer" if changed == "tokenizer" else "data.file_path"
    if changed == "tokenizer":
        other = tmp_path / "tokenizer"
        other.mkdir()
        for source in (packed.cache / "tokenizers/sample").iterdir():
            (other / source.name).write_bytes(source.read_bytes().replace(b'"Th"', b'"Tx"').replace(b"Th e", b"T he"))
    elif changed == "corpus":
        other.write_bytes(packed.corpus.read_bytes().replace(b"the", b"THE", 1))
    result = run(path, monkeypatch, packed, sets=[f"{setting}={other}"])
    what = "cannot be read here" if changed == "absent corpus" else "differs from the archived file"
    assert result.outcome == Outcome.CANNOT_TELL and f"{setting} ({other}) {what}" in result.reason
    both = run(path, monkeypatch, packed, sets=["data.file_path=nowhere", "data.tokenizer=./nothing"]).reason
    assert "data.file_path (nowhere) cannot be read here" in both
    assert "data.tokenizer (./nothing) cannot be read here" in both and "warm-cache --tokenizer NAME" in both
    assert not list((tmp_path / "here/replay").glob("*/job.out"))
    with pytest.raises(UserError, match="only accepts new locations of files"):
        run(path, monkeypatch, packed, sets=["trainer.max_iters=5"])


def test_altered_results_are_not_packed(packed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, study = open_archive(packed.folder / "study.ablatrix.zip", tmp_path / "out")
    loss = study.runs[0].folder / "loss.csv"
    loss.write_text(loss.read_text().replace("\n5,", "\n5,1"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"loss\.csv has been changed since"):
        pack("study", None, folder, open_console())


def noise(sd: float = 0.01, df: int = 12) -> Noise:
    return Noise(sd, df, None, None, 0.0, 0.0)


def pairs(differences: dict[str, list[float]], apart: float = 1.0) -> list[Pair]:
    return [
        Pair(cell, seed, 3.0, 3.0 + difference, apart=apart)
        for cell, found in differences.items()
        for seed, difference in enumerate(found)
    ]


def test_the_equivalence_test_with_worked_numbers() -> None:
    # t(0.95, 12) = 1.7823 and sd * sqrt(2 / 2) = 0.01: bounds 0.0178 and 0.0228
    assert judge(pairs({"a": [0.001, -0.001], "b": [0.005, 0.005]}), noise(), 0.023)[0] == Outcome.REPRODUCED
    assert judge(pairs({"a": [0.001, -0.001], "b": [0.005, 0.005]}), noise(), 0.022)[0] == Outcome.CANNOT_TELL
    # t(1 - 0.05 / 4, 12) = 2.5600
    assert judge(pairs({"a": [0.0, 0.0], "b": [-0.026, -0.026]}), noise(), 0.022)[0] == Outcome.NOT_REPRODUCED
    assert judge(pairs({"a": [0.0, 0.0], "b": [-0.025, -0.025]}), noise(), 0.022)[0] == Outcome.CANNOT_TELL
    assert judge(pairs({"a": [1e-6]}, apart=1e-6), None, None)[0] == Outcome.CANNOT_TELL
    outcome, reason = judge(pairs({"a": [1e-6]}, apart=1e-6), noise(), 0.001)
    assert outcome == Outcome.REPRODUCED and "up to rounding" in reason
    assert judge(pairs({"a": [0.001]}), noise(), 1.0, on_cpu=True, same_environment=True)[0] == Outcome.NOT_REPRODUCED
    twin = Pair("a", 7, 3.0, 3.0, identical=True, apart=0.0)
    outcome, reason = judge([twin, *pairs({"a": [0.001]})], noise(), 1.0, on_cpu=True)
    assert outcome == Outcome.NOT_REPRODUCED and "a with seed 0 differs" in reason
    assert judge([twin, *pairs({"a": [0.001]})], noise(), 1.0)[0] == Outcome.REPRODUCED, "a GPU repeats nothing exactly"
    assert judge([twin, *pairs({"b": [0.001]})], noise(), 1.0, on_cpu=True)[0] == Outcome.REPRODUCED
    elsewhere = Pair("a", 8, 3.0, 3.001, apart=1.0, made_in="another CPU")
    assert judge([twin, elsewhere], noise(), 1.0, on_cpu=True)[0] == Outcome.REPRODUCED, "not accused of its CPU"
    outcome, reason = judge([twin, elsewhere, replace(elsewhere, seed=9, identical=True)], noise(), 1.0, on_cpu=True)
    assert outcome == Outcome.NOT_REPRODUCED and "a with seed 8 differs" in reason
    assert judge([Pair("a", 1, 3.0, None)], noise(), 1.0)[0] == Outcome.NOT_REPRODUCED
    assert judge([Pair("a", 1, None, None)], noise(), 1.0)[0] == Outcome.CANNOT_TELL


@pytest.mark.parametrize(("invented", "outcome"), [(-0.3, Outcome.NOT_REPRODUCED), (0.0, Outcome.REPRODUCED)])
def test_an_invented_value_does_not_widen_its_own_interval(invented: float, outcome: Outcome, tmp_path: Path) -> None:
    """In another environment, where no run repeats bit for bit: 1 value of 12 is off by 15 times the noise."""
    plan = Plan(features={name: FEATURES[name] for name in ("rope", "swiglu")}, noise=0.02)
    write_study(tmp_path / "honest", plan)
    write_study(tmp_path / "packed", plan)
    again, study = (study_dir.load_study(tmp_path / name) for name in ("honest", "packed"))
    for run in study.runs:
        shift = 1e-3 + (invented if (run.cell, run.seed) == ("rope", 1) else 0.0)
        summary = run.folder / "summary.json"
        change_record(summary, val_nll=json.loads(summary.read_text())["val_nll"] + shift)
        (run.folder / "provenance.json").write_text('{"versions": {"torch": "1.0"}}')
    result = compare(of_study(study, {}), study.runs, again, None)
    assert (result.outcome, len(result.pairs)) == (outcome, 12), result.reason
    assert [name for name, _, _ in result.differences] == ["versions.torch"]
    assert compare(of_study(study, {}), study.runs, again, 1.0).outcome == Outcome.REPRODUCED, "as --margin says"


@pytest.mark.parametrize(("shift", "wrong"), [(0.0, Outcome.NOT_REPRODUCED), (0.02, Outcome.REPRODUCED)])
def test_error_rates_of_the_outcome(shift: float, wrong: Outcome) -> None:
    """Replays that are independent draws: false alarms, and false equivalence of a cell that is off by the margin."""
    rng, draws = np.random.default_rng(1), 2000
    count = 0
    for _ in range(draws):
        found = rng.normal(0, 0.01 * np.sqrt(2), (2, 3))
        found[0] += shift
        sd = 0.01 * np.sqrt(rng.chisquare(12) / 12)
        sample = pairs({"a": found[0].tolist(), "b": found[1].tolist()})
        count += judge(sample, noise(float(sd)), 0.02)[0] == wrong
    assert count / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
