"""Studies and run folders on disk: creation, what is in them. The only code that knows their files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store import code_snapshot, selected_cluster
from ablatrix.orchestrator.study import run_config, secrets
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.study.metric import Measure, of_record
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.program import program
from ablatrix.trainer.rundir.safe_open import is_own, make_folder, owner_name, personal

STUDY = "study.json"
ORIGINS = "origins.json"  # in a run's folder: which file and line, feature or flag set each value of its config.json
SNAPSHOTS = ".snapshots"
LAST = ".last"  # under out/: the folder of the study submitted last
LOGS = "logs"  # of the scheduler; what a run prints is in its own job.out
VERSIONS = ("ablatrix", "torch", "numpy", "transformers", "tokenizers", "submitit")
FACTS = (recorded_inputs.CORPUS, recorded_inputs.TOKENIZER, "continued_from")  # of one run, in its provenance.json
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # of a run's folder, as `submit` makes them
# What of the environment may be recorded: nothing that could hold a secret
RECORDED_ENVIRONMENT = ("HF_HOME", "ABLATRIX_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CONDA_DEFAULT_ENV")
# The same patch whatever the user's git is set to, in the form that `sensitive.masked` reads
PATCH = (
    *("-c", "core.quotePath=true", "diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--unified=3", "--inter-hunk-context=0"),
    "--diff-algorithm=myers",
)


@dataclass(frozen=True)
class StudyRun:
    """A run as the study's plan names it."""

    id: str
    cell: str
    seed: int
    features: list[str]
    overrides: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Study:
    """A study on disk."""

    folder: Path
    name: str
    file: str
    created: float
    features: dict[str, Any]
    runs: list[StudyRun]
    info: dict[str, str] = field(default_factory=dict)  # experiment_info
    cluster: str = ""  # that its jobs are queued on; '' for the one of this machine
    measure: Measure = field(default_factory=Measure)  # what its runs are compared by

    def matching(self, text: str) -> list[StudyRun]:
        """The run with this id, else those of this cell, else those whose ids begin so. Raises UserError for none."""
        exact = [run for run in self.runs if text == run.id]
        found = exact or [r for r in self.runs if r.cell == text] or [r for r in self.runs if r.id.startswith(text)]
        if not found:
            names = ", ".join(run.id for run in self.runs[:12])
            raise UserError(f"{text}: no such run in {self.folder}; runs: {names}")
        return found

    def require(self) -> None:
        """Raises RunError where the study's folder is not there any more, OSError where that cannot be told."""
        try:
            os.stat(self.folder / STUDY)
        except FileNotFoundError:
            raise RunError(
                f"{self.folder / STUDY}: is gone (removed, purged, or its file system is not mounted any more); submit "
                "the experiment again when the folder is back"
            ) from None

    def find(self, text: str) -> StudyRun:
        """The one run meant by an id, the beginning of one, or a cell. Raises UserError listing the candidates."""
        found = self.matching(text)
        if len(found) > 1:
            names = ", ".join(run.id for run in found[:12])
            raise UserError(f"{text}: matches more than one run of {self.folder}: {names}")
        return found[0]

    def find_any(self, text: str) -> StudyRun:
        """The same, or the run of another plan that was left beside: by its id or the beginning of one."""
        try:
            return self.find(text)
        except UserError:
            beside = sorted(path for path in self.folder.glob("*") if path.name.startswith(text))
            beside = [path for path in beside if (path / run_files.CONFIG).exists()]
            exact = [path for path in beside if path.name == text] or beside
            if len(exact) != 1:
                raise
            cell, _, rest = exact[0].name.rpartition("-seed")
            seed = rest.partition("-")[0]
            return StudyRun(exact[0].name, cell, int(seed) if seed.isdecimal() else 0, [], {}, exact[0])


def create_study(
    folder: Path,
    name: str,
    file: Path,
    features: dict[str, Any],
    runs: Sequence[Run],
    origins: Origins | None = None,
    cluster: str = "",
) -> Study:
    """Make the study's folder and those of its runs; what is there already stays as it is (see `renew`).

    origins: who set each value of a run's configuration, for its folder.
    Raises UserError where the place cannot be written or a folder holds another run.
    """
    record = {
        "name": name,
        "file": str(file),
        "created": round(time.time(), 3),
        "features": features,
        "info": run_config.info(runs[0].config) if runs else {},
        "measure": run_config.measure(runs[0].config).as_record() if runs else None,
        "runs": [
            {"id": r.id, "cell": r.cell, "seed": r.seed, "features": list(r.features), "overrides": r.overrides}
            for r in runs
        ],
        **({"cluster": cluster} if cluster else {}),
    }
    require_own(folder)
    try:
        make_folder(folder, parents=True)
        make_folder(folder / LOGS)
        for run in runs:
            _create_run(folder / run.id, run, origins)
        run_files.atomic_write(folder / STUDY, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return load_study(folder)


def require_own(folder: Path) -> None:
    """Raises UserError for another user's study: two people's jobs would not know of each other, nor could they be
    cancelled. The superuser may act for anybody."""
    if os.geteuid() and os.path.lexists(folder) and not is_own(folder):
        raise UserError(
            f"{folder}: belongs to {owner_name(folder)}; give the study another name, or set `output:` to a folder of "
            "your own (status, show and logs can be asked of other people's studies)"
        )


def snapshot_store(folder: Path) -> Path:
    """Where the code of a study's runs is kept, whoever asks: its owner's own place where that user has one."""
    store = folder.parent / SNAPSHOTS
    try:
        own = store.with_name(f"{SNAPSHOTS}-{folder.stat().st_uid}")
    except OSError:
        return store
    return own if own.is_dir() else store


def study_runs(folder: Path, runs: Sequence[Run]) -> list[StudyRun]:
    """Planned runs with their places in a study's folder, whether they are there or not."""
    return [StudyRun(r.id, r.cell, r.seed, list(r.features), r.overrides, folder / r.id) for r in runs]


Origins = Callable[[Run], dict[str, str]]


def _create_run(folder: Path, run: Run, origins: Origins | None) -> None:
    make_folder(folder)
    if any(not (folder / name).exists() for name in run_config.files(run.config, folder, run.cell)):
        _write_config(folder, run, origins)
    elif origins and not (folder / ORIGINS).exists():
        _write_origins(folder, run, origins)


def renew(study: Study, runs: Iterable[Run], origins: Origins | None = None) -> None:
    """Before runs start: settings that are no part of their names (callbacks, words, threads) as the file has them now.

    Raises RunError where one cannot be written.
    """
    for run in runs:
        folder = study.folder / run.id
        try:
            files = run_config.files(run.config, folder, run.cell)
            if any(run_files.kept_text(folder / name) != text for name, text in files.items()):
                _write_config(folder, run, origins)
        except OSError as error:
            raise RunError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None


def _write_origins(folder: Path, run: Run, origins: Origins) -> None:
    run_files.atomic_write(folder / ORIGINS, json.dumps(origins(run), indent=1) + "\n", durable=False)


def _write_config(folder: Path, run: Run, origins: Origins | None) -> None:
    if origins:
        _write_origins(folder, run, origins)
    for name, text in run_config.files(run.config, folder, run.cell).items():
        run_files.atomic_write(folder / name, text, durable=False)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """A run's summary.json, None while there is none; a file of that name that a command has left is none.

    Raises OSError where the file system fails: that is not the same as a run without a result.
    """
    content = run_files.certain_bytes(folder / run_files.SUMMARY, run_files.LARGEST_JSON)
    try:
        summary = run_files.parse_json(content.decode("utf-8"))
    except ValueError:
        return None
    return summary if isinstance(summary, dict) and "iters" in summary else None


def planned_steps(folder: Path) -> int:
    """Steps that a run is to make, 0 where nothing says it."""
    spec = run_files.read_json(folder / SPEC)
    config = run_files.read_json(folder / run_files.CONFIG) or {}
    section = config.get("trainer")
    steps = spec.get("steps") if spec else section.get("max_iters") if isinstance(section, dict) else None
    return steps if isinstance(steps, int) and 0 <= steps < run_files.LARGEST_STEP else 0


def read_plan(folder: Path) -> dict[str, Any]:
    """study.json, every value of its type. Raises UserError where there is none or it is damaged."""
    record = run_files.read_json(folder / STUDY)
    if record is None:
        raise UserError(f"{folder}: holds no study ({STUDY} is missing or damaged); submit the experiment again")
    problem = _damage(record)
    if problem:
        raise UserError(f"{folder / STUDY}: damaged ({problem}); submit the experiment again to rewrite it")
    return record


def _damage(record: dict[str, Any]) -> str:
    """What of a study.json cannot be; '' where all is well."""
    for name, kind in (("name", str), ("file", str), ("created", int | float), ("features", dict), ("runs", list)):
        if not isinstance(record.get(name), kind):
            return f"{name} is missing or of another type"
    if not isinstance(record.get("cluster", ""), str):
        return "cluster is of another type"
    if not _holds(record.get("info", {}), str) or not _holds(record["features"], dict | None):
        return "info or features are of another type"
    seen: set[str] = set()
    for entry in record["runs"]:
        problem = _run_damage(entry)
        if problem:
            return problem
        if entry["id"] in seen:
            return f"two runs are called {entry['id']}"
        seen.add(entry["id"])
    return ""


def _run_damage(entry: Any) -> str:
    if not isinstance(entry, dict) or not {"id", "cell", "seed"} <= entry.keys():
        return "a run lacks its id, cell or seed"
    name, features = entry["id"], entry.get("features", [])
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or len(name) > 254:
        return f"{str(name)[:80]!r} is no run's name"
    seed = entry["seed"]
    typed = isinstance(entry["cell"], str) and isinstance(seed, int) and not isinstance(seed, bool)
    lists = isinstance(features, list) and all(isinstance(feature, str) for feature in features)
    if not typed or not lists or not isinstance(entry.get("overrides", {}), dict) or not 0 <= seed < 2**63:
        return f"{name}: its cell, seed, features or overrides are of another type"
    return ""


def _holds(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, kind) for inner in value.values())


def load_study(folder: Path) -> Study:
    """Read study.json; Slurm's commands then ask about its cluster. Raises UserError where it is missing or damaged."""
    record = read_plan(folder)
    try:
        runs = [StudyRun(folder=folder / entry["id"], **entry) for entry in record.pop("runs")]
        record["measure"] = of_record(record.get("measure"))
        study = Study(folder=folder, runs=runs, **record)
    except TypeError as error:
        raise UserError(f"{folder / STUDY}: damaged ({error}); submit the experiment again to rewrite it") from None
    selected_cluster.select(study.cluster)
    return study


def find_study(target: str | None, output: Path = Path("out")) -> Study:
    """The study meant by a folder, a name under `output`, or (None) the one submitted last. Raises UserError."""
    if target is not None:
        for folder in (Path(target), output / target):
            if _holds_study(folder):
                return load_study(folder)
        if any(_is(Path.is_dir, folder / LOGS) for folder in (Path(target), output / target)):
            raise UserError(f"{target}: its {STUDY} is missing (removed since?); submit the experiment again")
        raise UserError(f"{target}: no study there; studies in {output}/: {', '.join(_studies(output)) or 'none'}")
    last = Path(run_files.read_text(personal(output / LAST)).strip() or output)
    if _holds_study(last):
        return load_study(last)
    names = list(_studies(output))
    if not names:
        raise UserError(f"no study in {output}/ yet; start with: {program()} submit {_suggest_file()}")
    return load_study(output / max(names, key=lambda name: (output / name / STUDY).stat().st_mtime))


def _suggest_file() -> str:
    """Return an experiment file of the working folder, quoted for a shell; FILE.yaml where there is none."""
    found = [*sorted(Path().glob("*.y*ml")), *sorted(Path("experiments").glob("*.y*ml"))]
    found.sort(key=lambda path: path.stem != "ablation")
    return shlex.quote(str(found[0])) if found else "FILE.yaml"


def _holds_study(folder: Path) -> bool:
    return _is(Path.is_file, folder / STUDY)


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """False also where one may not look, and for a name that no file can have."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def note_last(folder: Path, output: Path = Path("out")) -> None:
    """Remember the study submitted last, wherever its `output:` is: the one that status and report mean."""
    with contextlib.suppress(OSError):
        output.mkdir(exist_ok=True)
        run_files.atomic_write(personal(output / LAST), f"{folder}\n", durable=False)


def _studies(output: Path) -> Iterator[str]:
    return (path.parent.name for path in sorted(output.glob(f"*/{STUDY}")))


def surroundings(code: Path) -> dict[str, Any]:
    """What all runs of a submission share in provenance.json. Never the values of secrets."""
    dirty = code_snapshot.git("status", "--porcelain").strip()
    return {
        "code_snapshot": code.name,
        "git_commit": code_snapshot.git("rev-parse", "HEAD").strip() or None,
        "git_dirty": bool(dirty),
        "git_patch_sha256": save_patch(code) if dirty else None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "versions": package_versions(),
        "environment": {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ},
        "submitted": round(time.time(), 3),
        "working_folder": str(Path.cwd()),
    }


def note_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Record what is known of one run, the content of its data for instance, in its provenance.json. Raises OSError.

    `write_provenance` keeps it: what is queued later, by another process, was planned now.
    """
    record = run_files.read_json(folder / run_files.PROVENANCE) or {}
    known = {name: record[name] for name in FACTS if name in record}
    if {**known, **facts} != known:
        rest = {name: value for name, value in record.items() if name not in FACTS}
        _write_json(folder / run_files.PROVENANCE, {**rest, **known, **facts})


def write_provenance(folder: Path, shared: dict[str, Any], command: Sequence[str]) -> None:
    """provenance.json: where the run's code and surroundings came from, and its command."""
    before = run_files.read_json(folder / run_files.PROVENANCE) or {}
    kept = {name: before[name] for name in FACTS if name in before}
    _write_json(folder / run_files.PROVENANCE, {"command": list(command), **shared, **kept})


def _write_json(path: Path, record: dict[str, Any]) -> None:
    run_files.atomic_write(path, json.dumps(record, indent=1) + "\n", durable=False)


def save_patch(code: Path) -> str | None:
    """Keep the uncommitted changes beside the snapshot, once, as <hash>.patch, secrets masked; returns the SHA-256."""
    patch = secrets.masked(code_snapshot.git(*PATCH, "HEAD"))
    if not patch:
        return None
    path = code.with_name(f"{code.name}.patch")
    if not path.exists():
        run_files.atomic_write(path, patch)
    return hashlib.sha256(patch.encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def shares(run_dir: Path) -> bool:
    """Is this run one that several processes share?"""
    if (run_dir / SPEC).exists():  # a command starts its processes itself
        return False
    section = (run_files.read_json(run_dir / run_files.CONFIG) or {}).get("trainer")
    return isinstance(section, dict) and section.get("strategy", "single") != "single"
