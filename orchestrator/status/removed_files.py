"""Files of a finished study that were removed, by a purge of scratch or by hand, and how to get each one back.

A run's last event lists its files.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store import code_snapshot, provenance, study_dir
from ablatrix.orchestrator.store.study_dir import ORIGINS, Study
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState

REWRITTEN = frozenset({run_files.CONFIG, SPEC, ORIGINS})  # rewritten by every `submit`
RERUN = "submit --retry runs it again"
REPORT, MANIFEST = "report", ".made.json"
SHOWN = 3


def of_run(folder: Path, events: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of a finished run's removed files, relative to its folder."""
    names = {run_files.CONFIG, run_files.LOSS, run_files.EVENTS}
    finished = [event for event in events if event["event"] == "finished"]
    if finished:
        names |= _listed(finished[-1])
    elif events:  # the last event could not be written
        return ()
    for event in events:
        if event["event"] == "cleaned":  # removed on request
            names -= _listed(event)
    return tuple(sorted(names - _existing(folder, names)))


def _listed(event: Mapping[str, Any]) -> set[str]:
    """Return the file names in an event, except those outside the run's folder."""
    files = event.get("files")
    names = (name for name in files if isinstance(name, str) and name.isprintable()) if isinstance(files, list) else ()
    return {name for name in names if not name.startswith("/") and ".." not in name.split("/")}


def _existing(folder: Path, names: Collection[str]) -> set[str]:
    """Return all files in the folders of these names; listing each folder once spares the file server many queries."""
    places = {name.rpartition("/")[0] for name in names}
    return {f"{place}/{name}" if place else name for place in places for name in _list_folder(folder / place)}


def _list_folder(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def describe(missing: Collection[str], altered: str = "") -> str:
    """Return a text such as `removed since: loss.csv (submit --retry runs it again)`; '' if nothing is missing.

    altered: how loss.csv differs from what the run wrote.
    """
    results = {run_files.LOSS}
    groups = {
        RERUN: results & set(missing),
        "submit writes it again": REWRITTEN & set(missing),
        "only submit --rerun makes it again": set(missing) - results - REWRITTEN,
    }
    removed = [f"{_enumerate(sorted(names))} ({how})" for how, names in groups.items() if names]
    sentences = [f"{altered} ({RERUN})" if altered else "", f"removed since: {', '.join(removed)}" if removed else ""]
    return "; ".join(filter(None, sentences))


def _enumerate(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def of_study(study: Study) -> list[str]:
    """Return a line for each file that is missing outside the run folders: report, code snapshots."""
    return [f"removed since: {text}" for text in (*_report(study), *_snapshots(study))]


def list_all(study: Study, states: Sequence[RunState]) -> list[str]:
    """Return a plain-text list of removed files, per run and outside the run folders."""
    runs = [
        f"{s.run.id}: {s.reason if s.state != 'done' else describe(s.missing, s.altered)}"
        for s in states
        if s.missing or s.altered
    ]
    return runs + of_study(study)


def _report(study: Study) -> Iterator[str]:
    folder = study.folder / REPORT
    names = _list_folder(folder)
    if any(not name.startswith(".") for name in names):  # otherwise the first report is still being written
        listed = (run_files.read_json(folder / MANIFEST) or {}).get("files")
        known = {MANIFEST, *(listed if isinstance(listed, dict) else ())}
        yield from (f"{folder / name} (report writes it again)" for name in sorted(known - names))


def _snapshots(study: Study) -> Iterator[str]:
    folders = [run.folder for run in study.runs]
    store = study_dir.snapshot_store(study.folder)
    for name, has_patch in sorted(provenance.snapshots_of(folders).items()):
        removed = code_snapshot.removed_files(store / name, folders)
        if removed is None:
            yield f"a file of the code snapshot {store / name} (of code that has changed)"
        elif removed:
            yield f"{_enumerate(removed)} of the code snapshot {store / name} (submit writes it again)"
        if has_patch and not (store / f"{name}.patch").exists():
            yield f"{store / name}.patch (nothing needs it)"
