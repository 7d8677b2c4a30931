"""What is missing from a finished study: files of its runs, code snapshots, logs, the report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablatrix.orchestrator.status.removed_files import NEEDED, describe_list, told
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import code_snapshot, study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.trainer.rundir import run_files

REPORT, MANIFEST, CURVES = "report", ".made.json", ".curves.npz"
_CODE = re.compile(r'"code_snapshot": *"([0-9a-f]{16})"')


_PATCH = re.compile(r'"git_patch_sha256": *"')


def of_study(study: Study, states: Sequence[RunState]) -> list[str]:
    """A line for each file that is missing outside the run folders: code, logs, the report."""
    found = [f"removed since: {study.folder / name} ({how})" for name, how in (*_report(study), *_logs(study, states))]
    store = study_dir.snapshot_store(study.folder)
    codes = snapshots(study)
    for code in sorted(codes.names):
        names = code_snapshot.lacking(store / code, codes.own())
        if names is None:
            found.append(f"removed since: a file of the code snapshot {store / code} (of code that has changed)")
        elif names:
            found.append(
                f"removed since: {describe_list(names)} of the code snapshot {store / code} (submit writes it again)"
            )
    patches = [f"{code}.patch" for code in codes.patched if not (store / f"{code}.patch").exists()]
    return [*found, *(f"removed since: {store / name} (nothing needs it)" for name in patches)]


def lines(study: Study, states: Sequence[RunState]) -> list[str]:
    """For whoever shows no table of the runs: what is missing in each, and outside them."""
    runs = [
        f"{s.run.id}: {s.reason if s.state != 'done' else told(s.missing, s.altered)}"
        for s in states
        if s.missing or s.altered
    ]
    return runs + of_study(study, states)


def _report(study: Study) -> Iterator[tuple[str, str]]:
    """The files of the last report, which are listed in one of them."""
    folder = study.folder / REPORT
    names = _names(folder)
    if any(not name.startswith(".") for name in names):  # else the first one is being made
        listed = (run_files.read_json(folder / MANIFEST) or {}).get("files")
        known = {MANIFEST, CURVES, *(listed if isinstance(listed, dict) else ())}
        yield from ((f"{REPORT}/{name}", "report writes it again") for name in sorted(known - names))


def _logs(study: Study, states: Sequence[RunState]) -> Iterator[tuple[str, str]]:
    """The scheduler's logs, or the job scripts, of the runs as they were queued last."""
    names = _names(study.folder / study_dir.LOGS)
    wanted = {state.log for state in states if state.log}
    yield from ((f"{study_dir.LOGS}/{name}", "nothing needs it") for name in sorted(wanted - names))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


@dataclass
class Snapshots:
    """The code that the runs of a study were queued with."""

    study: Study
    names: set[str] = field(default_factory=set)
    patched: set[str] = field(default_factory=set)  # those beside which there is a patch

    def own(self) -> Iterator[str]:
        """Names of the user's own modules in them; reads the configuration of every run."""
        for run in self.study.runs:
            yield from code_snapshot.own_modules(run_files.read_json(run.folder / run_files.CONFIG))


def snapshots(study: Study) -> Snapshots:
    """Return what the runs' provenance.json say of their code."""
    found = Snapshots(study)
    for run in study.runs:
        text = run_files.read_text(
            run.folder / run_files.PROVENANCE
        )  # thousands of them: parsing each as JSON takes long
        code = _CODE.search(text)
        if code:
            found.names.add(code[1])
            if _PATCH.search(text):
                found.patched.add(code[1])
    return found


def incomplete(state: RunState) -> bool:
    """True if a finished run has lost or changed something that the report needs."""
    return bool(NEEDED & set(state.missing)) or bool(state.altered)
