"""Studies on disk: study.json, the folders of the study and its runs, and how they are found."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, StringConstraints, TypeAdapter, ValidationError

from ablatrix.orchestrator.store import selected_cluster
from ablatrix.orchestrator.study.looks import Looks  # noqa: TC001 (pydantic reads the annotation)
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.study.metric import NLL, Measure
from ablatrix.orchestrator.study.notify_settings import Notify  # noqa: TC001 (pydantic reads the annotation)
from ablatrix.orchestrator.study.tuning import Tuning  # noqa: TC001 (pydantic reads the annotation)
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.files import atomic_write, list_folder, make_folder, read_text_strict
from ablatrix.trainer.rundir.owners import is_own, owner_name, personal
from ablatrix.trainer.rundir.program import program

STUDY = "study.json"
ORIGINS = "origins.json"  # in a run's folder: which file and line, feature or flag set each value of its config.json
SNAPSHOTS = ".snapshots"
LAST = ".last"  # in out/: contains the folder of the last submitted study
LOGS = "logs"  # the scheduler's logs; a run's output is in its own job.out


# A run's folder, as `submit` names it
RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+@-]*$", max_length=254)]


@dataclass(frozen=True)
class StudyRun:
    """A run of a study on disk: its entry in study.json, and its folder."""

    id: RunId
    cell: str
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)]
    features: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    size: str = ""  # its size on the scale axis
    steps: int = 0  # planned optimizer steps, 0 if unknown


@dataclass(frozen=True)
class Planned:
    """What a submit planned: the study's seeds, cells and looks at that time, and the runs already finished."""

    time: float
    seeds: list[int]
    cells: list[str]
    looks: Looks | None = None
    finished: int = 0


@dataclass(frozen=True)
class Study:
    """A study on disk: the content of study.json, and the study's folder."""

    folder: Path
    name: str
    file: str
    created: float
    features: dict[str, dict[str, Any] | None]
    runs: list[StudyRun]
    info: dict[str, str] = field(default_factory=dict)  # experiment_info
    cluster: str = ""  # on which its jobs are queued; '' for this machine's own
    measure: Measure = NLL  # by which its runs are compared
    margins: list[tuple[float, float | None]] = field(default_factory=list)  # (time, value) of each change to `margin:`
    tune: Tuning | None = None  # settings tuned in every cell
    design: list[Any] = field(default_factory=list)  # as in the experiment file
    scale: dict[str, Any] = field(default_factory=dict)  # `sizes` in order, and the options of `scale:` for the report
    plans: list[Planned] = field(default_factory=list)  # the first submit, and each change since
    notify: Notify | None = None  # where messages about the study are sent

    @property
    def looks(self) -> Looks | None:
        """The planned looks, None if all seeds run at once."""
        return self.plans[-1].looks if self.plans else None

    def matching(self, text: str) -> list[StudyRun]:
        """Return the run with this id, else the cell's runs, else those whose id starts with it. Raises UserError."""
        exact = [run for run in self.runs if text == run.id]
        found = exact or [r for r in self.runs if r.cell == text] or [r for r in self.runs if r.id.startswith(text)]
        if not found:
            names = ", ".join(run.id for run in self.runs[:12])
            raise UserError(f"{text}: no such run in {self.folder}; runs: {names}")
        return found

    def require(self) -> None:
        """Raise RunError if the study's folder no longer exists, OSError if that cannot be determined."""
        try:
            (self.folder / STUDY).stat()
        except FileNotFoundError:
            raise RunError(
                f"{self.folder / STUDY} no longer exists (removed, purged, or its file system is not mounted); submit "
                "the experiment again once the folder is back"
            ) from None

    def find(self, text: str) -> StudyRun:
        """Return the run with this id, prefix of an id, or cell. Raises UserError, which lists the candidates."""
        found = self.matching(text)
        if len(found) > 1:
            names = ", ".join(run.id for run in found[:12])
            raise UserError(f"{text} matches more than one run of {self.folder}; choose one of them: {names}")
        return found[0]

    def find_any(self, text: str) -> StudyRun:
        """Like `find`, but also finds a run of an earlier plan that is still in the folder, by its id or a prefix."""
        try:
            return self.find(text)
        except UserError:
            earlier = sorted(path for path in self.folder.glob("*") if path.name.startswith(text))
            earlier = [path for path in earlier if (path / run_files.CONFIG).exists()]
            exact = [path for path in earlier if path.name == text] or earlier
            if len(exact) != 1:
                raise
            cell, _, rest = exact[0].name.rpartition("-seed")
            seed = rest.partition("-")[0]
            return StudyRun(exact[0].name, cell, int(seed) if seed.isdecimal() else 0, folder=exact[0])


_RECORD = TypeAdapter(Study)  # study.json
Origins = Callable[[Run], str]  # run -> the content of its origins.json


def create_study(
    folder: Path,
    name: str,
    file: Path,
    features: dict[str, Any],
    runs: Sequence[Run],
    *,
    origins: Origins | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Study:
    """Create the folders of a study and of its runs. Existing files stay as they are (see `update_configs`).

    fields: further fields of study.json (`cluster`, `design`, those of `plan_fields`); empty ones are left out.
    Raises UserError if the folder cannot be written or belongs to another user.
    """
    record: dict[str, Any] = {"name": name, "file": str(file), "created": round(time.time(), 3), "features": features}
    if runs:
        config = runs[0].config
        record |= {"info": config.about, "measure": asdict(config.measure)}
    record["runs"] = [
        {"id": r.id, "cell": r.cell, "seed": r.seed, "features": list(r.features), "overrides": r.overrides}
        | ({"size": r.size} if r.size else {})
        | ({"steps": steps} if (steps := r.cell_config.steps) else {})
        for r in runs
    ]
    record |= {name: value for name, value in (fields or {}).items() if value}
    record |= {"tune": asdict(tune)} if (tune := runs[0].tune if runs else None) else {}
    record |= {name: value for name, value in _kept(folder).items() if name not in record}
    require_own(folder)
    try:
        make_folder(folder, parents=True)
        make_folder(folder / LOGS)
        for run, files in _files_of(folder, runs):
            _create_run(f"{folder}/{run.id}", run, files, origins)
        atomic_write(folder / STUDY, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from None
    return load_study(folder)


def _kept(folder: Path) -> dict[str, Any]:
    """Return what an existing study.json records about earlier submits; {} if it is missing or corrupt."""
    try:
        return {name: value for name, value in read_plan(folder).items() if name in ("margins", "plans")}
    except UserError:
        return {}


def plan_fields(folder: Path, runs: Sequence[Run], looks: Looks | None, margin: float | None) -> dict[str, Any]:
    """Return `margins` and `plans` of study.json for a submit of these runs: the old ones, and a new one if changed.

    Changes after the first submit must stay visible.
    """
    kept, now = _kept(folder), round(time.time(), 3)
    margins, plans = kept.get("margins", []), kept.get("plans", [])
    if not margins or margins[-1][1] != margin:
        margins = [*margins, [now, margin]]
    plan = asdict(plan_of(runs, looks)) | {"looks": looks.as_record() if looks else None}
    if not plans or any(plans[-1].get(name) != plan[name] for name in ("seeds", "cells", "looks")):
        finished = sum(os.path.exists(f"{folder}/{run.id}/{run_files.SUMMARY}") for run in runs)
        plans = [*plans, plan | {"time": now, "finished": finished}]
    return {"margins": margins, "plans": plans}


def plan_of(runs: Sequence[Run], looks: Looks | None) -> Planned:
    """Return the plan of a submit of these runs, without its time."""
    return Planned(0.0, sorted({run.seed for run in runs}), list(dict.fromkeys(run.cell for run in runs)), looks)


def require_own(folder: Path) -> None:
    """Raise UserError if the study belongs to another user, unless we are root.

    Jobs of two users would not know about each other, and neither user could cancel the other's jobs.
    """
    if os.geteuid() and os.path.lexists(folder) and not is_own(folder):
        raise UserError(
            f"{folder}: owned by {owner_name(folder)}; give the study another name, or set `output:` to a folder of "
            "your own (status, show and logs also work on other people's studies)"
        )


def snapshot_store(folder: Path) -> Path:
    """Return the folder with the code snapshots of a study's runs: the study owner's, if it exists."""
    store = folder.parent / SNAPSHOTS
    try:
        own = store.with_name(f"{SNAPSHOTS}-{folder.stat().st_uid}")
    except OSError:
        return store
    return own if own.is_dir() else store


def study_runs(folder: Path, runs: Sequence[Run]) -> list[StudyRun]:
    """Return planned runs as runs of a study in `folder`, whether or not their folders exist."""
    return [
        StudyRun(r.id, r.cell, r.seed, list(r.features), r.overrides, folder / r.id, r.size, r.cell_config.steps or 0)
        for r in runs
    ]


def _files_of(folder: Path, runs: Iterable[Run]) -> Iterator[tuple[Run, dict[str, str]]]:
    """Yield each run and the files of its configuration, which the runs of a cell have in common for the most part."""
    for _, members in groupby(runs, key=lambda run: id(run.cell_config)):
        group = list(members)
        places = [(run.trained_seed, folder / run.id) for run in group]
        yield from zip(group, group[0].cell_config.files(places, group[0].cell), strict=True)


def _create_run(folder: str, run: Run, files: Mapping[str, str], origins: Origins | None) -> None:
    there = [] if make_folder(folder) else list_folder(folder)
    if not files.keys() <= set(there):
        _write_config(folder, run, files, origins)
    elif origins and ORIGINS not in there:
        _write_origins(folder, run, origins)


def update_configs(study: Study, runs: Iterable[Run], origins: Origins | None = None) -> None:
    """Rewrite configurations whose settings outside the run's hash (callbacks, threads) changed, before runs start.

    Raises RunError if a configuration cannot be written.
    """
    for run, files in _files_of(study.folder, runs):
        folder = f"{study.folder}/{run.id}"
        try:
            if any(read_text_strict(f"{folder}/{name}") != text for name, text in files.items()):
                _write_config(folder, run, files, origins)
        except OSError as error:
            raise RunError(f"cannot write to {error.filename or folder}: {error.strerror}") from None


def _write_config(folder: str, run: Run, files: Mapping[str, str], origins: Origins | None) -> None:
    if origins:
        _write_origins(folder, run, origins)
    for name, text in files.items():
        atomic_write(f"{folder}/{name}", text, durable=False)


def _write_origins(folder: str, run: Run, origins: Origins) -> None:
    atomic_write(f"{folder}/{ORIGINS}", origins(run), durable=False)


def read_plan(folder: Path) -> dict[str, Any]:
    """Return study.json, validated. Raises UserError if it is missing or corrupt."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[dict[str, Any], Study]:
    record = run_files.read_json(folder / STUDY)
    if record is None:
        raise UserError(f"{folder}: no study found ({STUDY} is missing or corrupt); submit the experiment again")
    try:
        study = _RECORD.validate_python({**record, "folder": folder})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _damaged(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name, count in Counter(run.id for run in study.runs).items():
        if count > 1:
            raise _damaged(folder, f"two runs are called {name}")
    return record, study


def _damaged(folder: Path, problem: str) -> UserError:
    return UserError(f"{folder / STUDY}: corrupt ({problem}); submit the experiment again to rewrite it")


def read_study(folder: Path) -> Study:
    """Return the study recorded in study.json. Raises UserError if it is missing or corrupt."""
    study = _read(folder)[1]
    return replace(study, runs=[replace(run, folder=folder / run.id) for run in study.runs])


def load_study(folder: Path) -> Study:
    """Read study.json and select its cluster for Slurm's commands. Raises UserError if it is missing or corrupt."""
    study = read_study(folder)
    selected_cluster.select(study.cluster)
    return study


def find_study(target: str | None, output: Path = Path("out")) -> Study:
    """Return the study with this folder or name, by default the last submitted one. Raises UserError."""
    if target is not None:
        folders = (Path(target), output / target)
        for folder in folders:
            if _holds_study(folder):
                return load_study(folder)
        if any(os.path.isdir(folder / LOGS) for folder in folders):
            raise UserError(f"{target}: no {STUDY} (was it removed?); submit the experiment again")
        raise UserError(f"{target}: no study there; studies in {output}/: {', '.join(_studies(output)) or 'none'}")
    last = Path(run_files.read_text(personal(output / LAST)).strip() or output)
    if _holds_study(last):
        return load_study(last)
    names = _studies(output)
    if not names:
        raise UserError(f"no study in {output}/ yet; start with: {program()} submit {_suggest_file()}")
    return load_study(output / max(names, key=lambda name: (output / name / STUDY).stat().st_mtime))


def find_run(text: str, study: str | None, output: Path = Path("out")) -> StudyRun:
    """Return the run given by its folder, as STUDY/RUN, or as RUN of the study `study`. Raises UserError.

    RUN is a run's id, the beginning of an id, or a cell.
    """
    folder = Path(text)
    if (folder / run_files.CONFIG).exists():
        return StudyRun(folder.absolute().name, "", 0, folder=folder)
    name, slash, run = text.rstrip("/").rpartition("/")
    if slash and study is None:
        return find_study(name, output).find_any(run)
    return find_study(study, output).find_any(text)


def _suggest_file() -> str:
    """Return an experiment file in the working folder, quoted for a shell; FILE.yaml if there is none."""
    found = [*sorted(Path().glob("*.y*ml")), *sorted(Path("experiments").glob("*.y*ml"))]
    found.sort(key=lambda path: path.stem != "ablation")
    return shlex.quote(str(found[0])) if found else "FILE.yaml"


def _holds_study(folder: Path) -> bool:
    """Return whether there is a study. Raises UserError if this user may not read it."""
    path = folder / STUDY
    try:
        found = stat.S_ISREG(path.stat().st_mode)
        denied = found and not os.access(path, os.R_OK)
    except PermissionError:
        denied = True
    except OSError:
        return False
    if denied:
        raise UserError(f"cannot read {path}: Permission denied; ask the owner of the folder for read access")
    return found


def _studies(output: Path) -> list[str]:
    return [path.parent.name for path in sorted(output.glob(f"*/{STUDY}"))]


def remember_last(folder: Path) -> None:
    """Record the last submitted study, wherever its `output:` is, for commands that are given no study."""
    output = Path("out")
    with contextlib.suppress(OSError):
        output.mkdir(exist_ok=True)
        atomic_write(personal(output / LAST), f"{folder}\n", durable=False)
