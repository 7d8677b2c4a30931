"""A finished study with its report, made once for tests that copy and corrupt it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from ablatrix.trainer.rundir import run_files
from tests.support.workspace import Workspace, without_clock

CLOCKS = ("seconds", "peak_memory_bytes", "timing", "loss_csv")  # the last is the hash of a file that contains seconds


def write(workspace: Workspace, name: str = "study") -> None:
    """Write an experiment file with two tiny runs."""
    path = workspace.write_study(name, iters=10, ckpt=5)
    text = path.read_text().partition("features:")[0]
    path.write_text(text + "features: {swiglu: {model.swiglu: true}}\ndesign: [baseline, one_at_a_time]\nseeds: [1]\n")


def make(workspace: Workspace) -> Workspace:
    """Run the study with the local launcher and write its report."""
    write(workspace)
    workspace.run("submit", "study.yaml", "--launcher", "local")
    workspace.run("report", "study")
    return workspace


def copy(made: Workspace, folder: Path) -> Workspace:
    """Copy a workspace to another folder; checkpoints and models are hard-linked, as they are never modified."""

    def link(source: str, target: str) -> None:
        (os.link if source.endswith(".pt") else shutil.copy2)(source, target)

    shutil.copytree(made.folder, folder, copy_function=link)
    return dataclasses.replace(made, folder=folder, environment={})


def results(workspace: Workspace, cell: str) -> tuple[object, ...]:
    """Return all results of a run that do not depend on the clock: rows, numbers, weights."""
    run = workspace.run_folder(cell)
    summary = run_files.read_json(run / run_files.SUMMARY) or {}
    numbers = {name: value for name, value in summary.items() if name not in CLOCKS}
    return without_clock(run), numbers, (run / run_files.MODEL).read_bytes()
