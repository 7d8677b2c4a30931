"""A loss.csv that somebody has changed after its run finished is noticed; a copied or touched one is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ablatrix.trainer.rundir import loss_csv, loss_digest, run_files, timing
from ablatrix.trainer.rundir.files import atomic_write

ROWS = 12
CHANGES: dict[str, Callable[[str], str]] = {
    "emptied": lambda text: "",
    "header only": lambda text: text.split("\n")[0] + "\n",
    "cut": lambda text: "".join(line + "\n" for line in text.split("\n")[:6]),
    "cut in a row": lambda text: text[:-5],
    "semicolons": lambda text: text.replace(",", ";"),
    "decimal commas": lambda text: text.replace(",", ";").replace(".", ","),
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "reordered": lambda text: "\n".join([text.split("\n")[0], *text.split("\n")[-2:0:-1], ""]),
    "rounded": lambda text: text.replace(".125", ".13"),
    "one digit": lambda text: text.replace("7.125", "7.124"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    log = loss_csv.LossLog(folder, 0)
    for step in range(1, ROWS + 1):
        log.write({"iter": step, "loss": step + 0.125, "dt": 0.5})
    summary = {"iters": ROWS, **timing.describe(folder, "cpu")}
    atomic_write(folder / run_files.SUMMARY, json.dumps(summary))
    return folder


def found(run: Path) -> str:
    return loss_digest.find_change(run, json.loads((run / run_files.SUMMARY).read_text()))


@pytest.mark.parametrize("change", CHANGES)
def test_changed(run: Path, change: str) -> None:
    path = run / run_files.LOSS
    path.write_bytes(CHANGES[change](path.read_text()).encode())
    os.utime(path, (2e9, 2e9))
    assert run_files.LOSS in found(run)


def test_what_it_says(run: Path) -> None:
    path = run / run_files.LOSS
    whole = path.read_text()
    path.write_text(CHANGES["cut"](whole))
    assert found(run) == "loss.csv has been changed since: 5 of 12 rows, it ends at step 5 of 12"
    path.write_text("")
    assert found(run) == "no row of loss.csv can be read anymore"
    path.write_text(CHANGES["one digit"](whole))
    os.utime(path, (2e9, 2e9))
    assert found(run) == "loss.csv has been changed since: 12 of 12 rows, not as they were written"


def test_whole(run: Path) -> None:
    assert found(run) == ""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, copy_function=shutil.copy)
    os.utime(copy / run_files.LOSS)
    assert found(copy) == ""
    (copy / run_files.LOSS).unlink()
    assert found(copy) == "", "said elsewhere"
