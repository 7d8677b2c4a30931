"""The verb `pack`: put a study into one archive, to be kept, published and replayed elsewhere."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ablatrix
from ablatrix.orchestrator.report.build import FOLDER
from ablatrix.orchestrator.report.collect import of_study
from ablatrix.orchestrator.report.integrity import find_contradictions
from ablatrix.orchestrator.store import archive, code_snapshot, provenance, study_dir
from ablatrix.orchestrator.study.command import CONFIG_FILE, SPEC
from ablatrix.orchestrator.verbs.plan import Options, make_plan
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.store.study_dir import Study

SUFFIX = ".ablatrix.zip"
ENVIRONMENT = "environment.txt"  # every installed package, in pip's format
EXPERIMENT = "experiment"  # folder of the experiment file and those it extends
# Files of a run that are packed; not its output, which may contain anything that the user's code has printed
KEPT = (
    *(run_files.CONFIG, run_files.ARGS, run_files.LOSS, run_files.SUMMARY, run_files.PROVENANCE, run_files.EVENTS),
    *(run_files.VAL_DOCUMENTS, run_files.SAMPLES, study_dir.ORIGINS, SPEC, CONFIG_FILE),
)
WEIGHTS = (run_files.MODEL, run_files.BEST, "checkpoint-*.pt")


def pack(study: str | None, to: Path | None, output: Path, console: Console, *, checkpoints: bool = False) -> Path:
    """Write the archive of a study, print its size and the SHA-256 of its manifest, and return its path.

    Raises UserError if results were edited or lost since the runs ended: such an archive would be worthless.
    """
    found = study_dir.find_study(study, output)
    read = of_study(found, {})
    if problems := find_contradictions(read):
        raise ConfigError([*problems, f"{found.folder}: not packed; restore these, or submit with --retry or --rerun"])
    experiment, file, notes = _experiment_files(found)
    files = {**_study_files(found, checkpoints), **_code_files(found, notes), **experiment}
    files[ENVIRONMENT] = _installed_packages()
    finished = sum(run.finished for run in read.runs)
    facts = {
        "study": found.folder.name,
        "ablatrix": ablatrix.__version__,
        "experiment": file,
        "runs": {"planned": len(read.runs), "finished": finished},
        "inputs": _inputs(found),
    }
    path = to or Path(f"{found.folder.name}{SUFFIX}")
    digest = archive.write(path, files, facts)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    console.print(f"finished: {finished} of {count(len(read.runs), 'run')}", highlight=False)
    size = path.stat().st_size / 1e6
    console.print(f"{path}: {len(files)} files, {size:.1f} MB, manifest {digest}", soft_wrap=True, highlight=False)
    return path


def _study_files(study: Study, checkpoints: bool) -> dict[str, Path | bytes]:
    """Return the files of the study's folder: archive name -> file."""
    patterns = (*KEPT, *(WEIGHTS if checkpoints else ()))
    paths = [path for run in study.runs for pattern in patterns for path in run.folder.glob(pattern)]
    paths += [study.folder / study_dir.STUDY, *(study.folder / FOLDER).glob("*")]
    kept = (path for path in paths if path.is_file() and not path.is_symlink())
    return {f"{study.folder.name}/{path.relative_to(study.folder)}": path for path in kept}


def _code_files(study: Study, notes: list[str]) -> dict[str, Path | bytes]:
    """Return the code snapshots that the runs were submitted with, and the patches of uncommitted changes."""
    store, found = study_dir.snapshot_store(study.folder), dict[str, Path | bytes]()
    for name in provenance.snapshots_of(run.folder for run in study.runs):
        if code_snapshot.removed_files(store / name) != []:
            notes.append(f"{store / name} was removed or changed, so the runs cannot be replayed with their code")
            continue
        paths = [path for path in (store / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        paths += [path for path in [store / f"{name}.patch"] if path.is_file()]
        found |= {f"{study_dir.SNAPSHOTS}/{path.relative_to(store)}": path for path in paths}
    return found


def _experiment_files(study: Study) -> tuple[dict[str, Path | bytes], str | None, list[str]]:
    """Return the experiment file and those it extends, the experiment file's name in the archive, and notes."""
    folders = [
        str((run_files.read_json(r.folder / run_files.PROVENANCE) or {}).get("working_folder", "")) for r in study.runs
    ]
    path = next((Path(folder, study.file) for folder in folders if folder), Path(study.file))
    try:
        planned = make_plan(Options(path))
    except UserError as error:
        return {}, None, [f"the experiment file is left out: {'; '.join(error.lines)}"]
    files = [file.resolve() for file in planned.loaded.files]
    root = os.path.commonpath([file.parent for file in files])
    names = {file: f"{EXPERIMENT}/{file.relative_to(root)}" for file in files}
    other = {run.id for run in planned.runs} ^ {run.id for run in study.runs}
    edited = f"{path} plans different runs than the study has (edited since, or submitted with --set)"
    main = names[planned.loaded.source.path.resolve()]
    return {name: file for file, name in names.items()}, main, [edited] if other else []


def _installed_packages() -> bytes:
    """Return the installed packages as requirements, one per line."""
    pins = {f"{each.name.lower().replace('_', '-')}=={each.version}" for each in metadata.distributions() if each.name}
    return "".join(f"{pin}\n" for pin in sorted(pins)).encode()


def _inputs(study: Study) -> list[dict[str, Any]]:
    """Return the inputs of the runs: the setting, its value, and the fingerprint of the content."""
    found = []
    for run in study.runs:
        record = run_files.read_json(run.folder / run_files.PROVENANCE) or {}
        config = run_files.read_json(run.folder / run_files.CONFIG) or {}
        for name, setting in recorded_inputs.SETTINGS.items():
            section, _, key = setting.partition(".")
            entry = {"setting": setting, "value": config.get(section, {}).get(key), "fingerprint": record.get(name)}
            if entry["fingerprint"] and entry not in found:
                found.append(entry)
    return found
