"""What somebody, or a purge of scratch that takes single old files, has removed from a finished study.

A run lists its files in its last event; what is not there any more is named, with the command that brings it back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store import code_snapshot, study_dir
from ablatrix.orchestrator.store.study_dir import ORIGINS, Study
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState

REPORT, MANIFEST, CURVES = "report", ".made.json", ".curves.npz"
REWRITTEN = frozenset({run_files.CONFIG, SPEC, ORIGINS})  # by every `submit`
NEEDED = frozenset({run_files.LOSS})  # by the report: `submit --retry` runs such a run again
RUN_AGAIN = "submit --retry runs it again"
SHOWN = 3
_CODE = re.compile(r'"code_snapshot": *"([0-9a-f]{16})"')
_PATCH = re.compile(r'"git_patch_sha256": *"')

Record = Mapping[str, Any]


def of_run(folder: Path, summary: Record, events: Sequence[Record]) -> tuple[str, ...]:
    """Names of the files, relative to a done run's folder, that it had and has not any more."""
    names = {run_files.CONFIG, run_files.LOSS, run_files.EVENTS}
    finished = [event for event in events if event["event"] == "finished"]
    if finished:
        listed = finished[-1].get("files")
        names |= set(filter(_is_inside, listed)) if isinstance(listed, list) else set()
    elif events:  # it could not write its last one
        return ()
    for event in events:
        if event["event"] == "cleaned" and isinstance(event.get("files"), list):  # removed on request
            names -= set(filter(_is_inside, event["files"]))
    return tuple(sorted(_absent(folder, names)))


def _is_inside(name: Any) -> bool:
    """Is it the name of a file in a folder, as a run writes it?"""
    return isinstance(name, str) and name.isprintable() and not name.startswith("/") and ".." not in name.split("/")


def _absent(folder: Path, names: Collection[str]) -> set[str]:
    """Each folder is listed once: a look for every name would ask a file server as often."""
    there: set[str] = set()
    for place in {os.path.dirname(name) for name in names}:
        try:
            there |= {os.path.join(place, name) for name in os.listdir(folder / place)}
        except OSError:
            continue
    return set(names) - there


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
            found.append(f"removed since: {_list(names)} of the code snapshot {store / code} (submit writes it again)")
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


def told(missing: Collection[str], altered: str = "") -> str:
    """`removed since: loss.csv (submit --retry runs it again)`; '' for nothing.

    altered: how loss.csv differs from what the run wrote.
    """
    groups = {
        RUN_AGAIN: sorted(NEEDED & set(missing)),
        "submit writes it again": sorted(REWRITTEN & set(missing)),
        "only submit --rerun makes it again": sorted(set(missing) - NEEDED - REWRITTEN),
    }
    words = [f"{_list(names)} ({how})" for how, names in groups.items() if names]
    said = [f"{altered} ({RUN_AGAIN})"] if altered else []
    said += [f"removed since: {', '.join(words)}"] if words else []
    return "; ".join(said)


def _list(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
