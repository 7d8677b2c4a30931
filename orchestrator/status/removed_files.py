"""What somebody, or a purge of scratch that takes single old files, has removed from a finished study.

A run lists its files in its last event; what is not there any more is named, with the command that brings it back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store.study_dir import ORIGINS
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    pass

REWRITTEN = frozenset({run_files.CONFIG, SPEC, ORIGINS})  # by every `submit`
NEEDED = frozenset({run_files.LOSS})  # by the report: `submit --retry` runs such a run again
RUN_AGAIN = "submit --retry runs it again"
SHOWN = 3

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


def told(missing: Collection[str], altered: str = "") -> str:
    """`removed since: loss.csv (submit --retry runs it again)`; '' for nothing.

    altered: how loss.csv differs from what the run wrote.
    """
    groups = {
        RUN_AGAIN: sorted(NEEDED & set(missing)),
        "submit writes it again": sorted(REWRITTEN & set(missing)),
        "only submit --rerun makes it again": sorted(set(missing) - NEEDED - REWRITTEN),
    }
    words = [f"{describe_list(names)} ({how})" for how, names in groups.items() if names]
    said = [f"{altered} ({RUN_AGAIN})"] if altered else []
    said += [f"removed since: {', '.join(words)}"] if words else []
    return "; ".join(said)


def describe_list(names: list[str]) -> str:
    """Return the first few names and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
