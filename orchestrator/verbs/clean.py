"""The verb `clean`: remove files that take up space and are no longer needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError

from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import run_facts, study_dir, unused_code
from ablatrix.orchestrator.terminal import printing
from ablatrix.trainer.config import TrainerConfig
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.console import count, visible
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import remove

if TYPE_CHECKING:
    from ablatrix.orchestrator.store.study_dir import Study, StudyRun

_SET_ASIDE = re.compile(r"\.old-[0-9]+$")


@dataclass(frozen=True)
class Item:
    """Something that may be removed. run: the run whose folder it is in."""

    path: Path
    why: str
    bytes: int
    inodes: int
    run: StudyRun | None = None


def clean(study: str | None, output: Path, *, yes: bool, as_json: bool = False) -> None:
    """List a study's removable files and remove them, after asking unless `yes`; as JSON, only with `yes`."""
    found = study_dir.find_study(study, output)
    items = find_items(found)
    if as_json:
        removed = {item.path for item in remove_items(found, items)} if yes else set()
        rows = [{"path": str(i.path), "why": i.why, "bytes": i.bytes, "removed": i.path in removed} for i in items]
        printing.print_json({"study": found.name, "items": rows})
        return
    if not items:
        print(f"{visible(str(found.folder))}: nothing to remove")
        return
    for why in dict.fromkeys(item.why for item in items):
        kind = [item for item in items if item.why == why]
        print(visible(f"{why}: {_describe_size(kind)}"))
        print(visible("\n".join(f"  {item.path}" for item in kind)))
    if not yes:
        typer.confirm(visible(f"remove {_describe_size(items)}?"), abort=True)
    print(f"removed {_describe_size(remove_items(found, items))}")


def find_items(study: Study) -> list[Item]:
    """Return what no run, report or resume needs. Raises UserError if the study is another user's."""
    study_dir.require_own(study.folder)
    unused = unused_code.find_unused(study_dir.snapshot_store(study.folder))
    return [*_run_items(study), *_set_aside(study), *(_item(path, "code that no run uses") for path in unused)]


def remove_items(study: Study, items: Sequence[Item]) -> list[Item]:
    """Remove the items that are still removable, and return them. Removals are recorded in the runs' events."""
    removed = []
    still = {item.path for item in find_items(study)}
    for item in items:
        if item.path not in still:
            continue
        if item.run:  # before removal, or status would report the file as missing
            append_event(item.run.folder, "cleaned", files=[item.path.name])
        if item.path.parent == study_dir.snapshot_store(study.folder):
            unused_code.remove(item.path)
        else:
            remove(item.path)
        removed.append(item)
    return removed


def _run_items(study: Study) -> Iterator[Item]:
    for state in study_state.collect(study):
        folder = state.run.folder
        if state.active:
            continue
        for path in sorted(folder.glob("*.bad*")):
            yield _item(path, "corrupt checkpoint, set aside", state.run)
        if state.state == "done":
            for path in _older_checkpoints(folder):
                yield _item(path, "older checkpoint of a finished run", state.run)


def _older_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that neither a resume nor a longer run needs; none if the last step has no checkpoint."""
    steps = {run_files.checkpoint_step(path): path for path in run_files.list_checkpoints(folder)}
    summary = run_facts.read_summary(folder) or {}
    last = max(steps, default=0)
    try:
        settings = TrainerConfig.model_validate((run_files.read_json(folder / run_files.CONFIG) or {}).get("trainer"))
    except ValidationError:
        return []
    if last != summary.get("iters"):
        return []
    return [path for step, path in sorted(steps.items()) if step not in (last, branch_step(settings))]


def _set_aside(study: Study) -> Iterator[Item]:
    known = {run.id for run in study.runs}
    for path in sorted(study.folder.glob("*.old-*")):
        if _SET_ASIDE.search(path.name) and _SET_ASIDE.sub("", path.name) in known and not path.is_symlink():
            yield _item(path, "result that --rerun put aside")


def _item(path: Path, why: str, run: StudyRun | None = None) -> Item:
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    return Item(path, why, sum(p.lstat().st_size for p in inside if not p.is_dir()), len(inside), run)


def _describe_size(items: Sequence[Item]) -> str:
    """Return the size of the items, such as `12.3 MB, 45 inodes`."""
    size, inodes = sum(item.bytes for item in items), sum(item.inodes for item in items)
    return f"{size / 1e6:,.1f} MB, {count(inodes, 'inode')}"
