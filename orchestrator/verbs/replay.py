"""The verb `replay`: verify an archive, repeat some of its runs here with its code, and compare the results."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ablatrix.orchestrator.report import collect, replayed
from ablatrix.orchestrator.report.collect import of_study
from ablatrix.orchestrator.report.integrity import find_contradictions
from ablatrix.orchestrator.report.looks import analyze
from ablatrix.orchestrator.report.replayed import Outcome, Pair
from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.store import archive, code_snapshot, provenance, run_facts, study_dir
from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.study.experiment import parse_seeds
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import changed_inputs, queueing
from ablatrix.orchestrator.terminal import tables
from ablatrix.orchestrator.terminal.printing import print_json
from ablatrix.orchestrator.verbs.submit import run_batch
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.files import atomic_write, make_folder

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study, StudyRun

FOLDER = "replay"  # folder of the repeated runs' study, in the unpacked one
EXIT_CODES = {Outcome.REPRODUCED: 0, Outcome.NOT_REPRODUCED: 1, Outcome.CANNOT_TELL: 3}
PLACES = (*recorded_inputs.SETTINGS.values(), "system.cache_dir")  # settings that --set may change
# Fields of provenance.json and summary.json that describe the environment on which a result depends
ENVIRONMENT = (
    *("python", "platform", "versions", "environment.OMP_NUM_THREADS", "code_snapshot", "device", "processes"),
    *("timing.hardware", "val_tokens", "val_fingerprint", recorded_inputs.DATA, *recorded_inputs.SETTINGS),
)


@dataclass(frozen=True)
class Options:
    """The runs to repeat, and where.

    sets: new locations of the corpus, the tokenizer and the cache, as KEY=VALUE; margin: equivalence margin, in the
    unit of the study's measure, by default the study's own margin.
    """

    archive: Path
    to: Path | None = None
    cells: Sequence[str] = ()
    seeds: str | None = None
    sets: Sequence[str] = ()
    margin: float | None = None


@dataclass(frozen=True)
class Result:
    """The outcome with its reason, the runs it is based on, and differences between the environments."""

    outcome: Outcome
    reason: str
    pairs: tuple[Pair, ...] = ()
    differences: tuple[tuple[str, str, str], ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Return the result as a record for `replay --json`."""
        runs = [
            {name: getattr(pair, name) for name in ("cell", "seed", "archived", "replayed", "difference", "identical")}
            for pair in self.pairs
        ]
        differences = [dict(zip(("name", "archived", "replayed"), each, strict=True)) for each in self.differences]
        return {"outcome": self.outcome, "reason": self.reason, "runs": runs, "differences": differences}


def replay(options: Options, console: Console, *, as_json: bool = False) -> int:
    """Repeat runs of an archive, print the comparison, and return the exit code of the outcome.

    Raises UserError if the archive was changed since it was packed, or is inconsistent.
    """
    result = make_result(options, console)
    if as_json:
        print_json(result.as_record())
        return EXIT_CODES[result.outcome]
    rows = [
        {
            "cell": pair.cell,
            "seed": str(pair.seed),
            "archived": spell(pair.archived),
            "replayed": spell(pair.replayed),
            "difference": "identical" if pair.identical else f"{pair.difference:+.3g}" if pair.difference else "0",
        }
        for pair in result.pairs
    ]
    if rows:
        tables.print_table("final values", rows, console, tables.Layout(left=("cell",)))
    for name, before, now in result.differences:
        console.print(f"differs: {name}: {before} in the archive, {now} here", soft_wrap=True)
    console.print(f"{result.outcome}: {result.reason}", soft_wrap=True)
    return EXIT_CODES[result.outcome]


def make_result(options: Options, console: Console) -> Result:
    """Unpack and verify the archive, repeat runs, and compare them."""
    if options.margin is not None and not options.margin > 0:
        raise UserError(f"--margin {options.margin}: must be greater than 0")
    folder, study = open_archive(options.archive, options.to)
    archived = of_study(study, {})
    runs = _choose(study, analyze(archived), options)
    problem = _write_runs(folder, runs, options.sets)
    if problem:
        return Result(Outcome.CANNOT_TELL, problem)
    again = study_dir.read_study(folder / FOLDER)
    names = ", ".join(f"{run.cell} (seed {run.seed})" for run in runs)
    console.print(f"replaying {names} in {again.folder}", soft_wrap=True)
    _train(folder, again, runs, console)
    return compare(archived, runs, again, options.margin)


def open_archive(path: Path, to: Path | None) -> tuple[Path, Study]:
    """Unpack an archive, unless an earlier replay has done so, and return its folder and the study.

    Raises UserError with everything that is wrong with the archive's files.
    """
    folder = to or Path(f"{path.name.removesuffix('.zip').removesuffix('.ablatrix')}-replay")
    if folder.exists():
        problems = [f"{folder}: {change}" for change in archive.find_changes(folder)]
    elif not path.is_file():
        raise UserError(f"{path}: no such archive; give the file that `ablatrix pack` wrote")
    else:
        archive.unpack(path, folder)
        problems = []
    name = str((run_files.read_json(folder / archive.MANIFEST) or {}).get("study"))
    study = study_dir.read_study(folder / name)
    problems += find_contradictions(of_study(study, {}))
    for snapshot in provenance.snapshots_of(run.folder for run in study.runs):
        if (code := folder / study_dir.SNAPSHOTS / snapshot).is_dir() and code_snapshot.removed_files(code) != []:
            problems.append(f"code snapshot {snapshot} differs from the code that the runs were made with")
    if problems:
        raise ConfigError(problems)
    return folder, study


def _choose(study: Study, analysis: Analysis, options: Options) -> list[StudyRun]:
    """Return the finished runs to repeat; by default the first seed of the baseline and of the best cell."""
    named = [run for name in options.cells for run in study.matching(name)]
    if not options.cells:
        ids = {run.id for name in replayed.default_cells(analysis) for run in analysis.cells[name].usable}
        named = [run for run in study.runs if run.id in ids]
    finished = [run for run in named if (run.folder / run_files.SUMMARY).exists()]
    if options.seeds is not None:
        wanted = parse_seeds(options.seeds)
        seeds = wanted if isinstance(wanted, list) else [wanted]
    else:  # the first of the seeds that most cells have
        counts = Counter(run.seed for run in finished)
        seeds = [min(counts, key=lambda seed: (-counts[seed], seed))] if counts else []
    chosen = [run for run in finished if run.seed in seeds]
    if not chosen:
        known = ", ".join(map(str, sorted({run.seed for run in finished})))
        raise UserError(f"no finished run to replay with these seeds; the chosen cells have seeds: {known or 'none'}")
    return list({run.id: run for run in chosen}.values())


def _write_runs(folder: Path, runs: Sequence[StudyRun], sets: Sequence[str]) -> str:
    """Create the study of the repeated runs. Return why the runs cannot be repeated here, '' if they can."""
    moved, inputs = _parse_places(sets), changed_inputs.Inputs()
    record = study_dir.read_plan(runs[0].folder.parent)
    chosen = {run.id for run in runs}
    for run in runs:
        if run_facts.is_command(run.folder):
            return f"{run.id} runs a command of its author, whose files are not in the archive"
        codes = provenance.snapshots_of([run.folder])
        if not codes or not all((folder / study_dir.SNAPSHOTS / name).is_dir() for name in codes):
            return f"{run.id}: the archive does not have the code of its runs"
        settings = _settings(run, moved)
        problem = _changed(run, settings, inputs)
        if problem:
            return problem
        target = folder / FOLDER / run.id
        make_folder(target, parents=True)
        atomic_write(target / run_files.CONFIG, json.dumps(settings, indent=2) + "\n", durable=False)
    entries = [entry for entry in record["runs"] if entry["id"] in chosen]
    kept = {name: value for name, value in record.items() if name not in ("plans", "cluster", "notify")}
    make_folder(folder / FOLDER / study_dir.LOGS)
    text = json.dumps({**kept, "name": f"{record['name']}-{FOLDER}", "runs": entries}, indent=1) + "\n"
    atomic_write(folder / FOLDER / study_dir.STUDY, text)
    return ""


def _parse_places(sets: Sequence[str]) -> dict[str, str]:
    """Parse `--set` options into setting -> new location. Raises UserError for any setting that is not a location."""
    pairs = dict(text.partition("=")[::2] for text in sets)
    for key, value in pairs.items():
        if key not in PLACES or not value:
            raise UserError(f"--set {key}: replay only accepts new locations of files: {', '.join(PLACES)}")
    return pairs


def _settings(run: StudyRun, moved: Mapping[str, str]) -> dict[str, Any]:
    """Return the archived configuration with the new locations of files.

    It is not parsed into a RunConfig because the packed code may be of a different version.
    """
    flat = run_facts.read_settings(run.folder)
    flat |= {key: str(Path(value).absolute()) if Path(value).exists() else value for key, value in moved.items()}
    if not Path(str(flat.get("system.cache_dir"))).is_dir():
        flat["system.cache_dir"] = str(Path(RunConfig().system.cache_dir).absolute())
    return dotted.nest({**flat, "system.work_dir": run.id})


def _changed(run: StudyRun, settings: Mapping[str, Any], inputs: changed_inputs.Inputs) -> str:
    """Return which inputs of a run are missing or have different content here, '' if there are none."""
    try:
        config = RunConfig.model_validate(settings)
    except (ValidationError, ValueError):
        return f"{run.id}: this version of Ablatrix cannot read its configuration; install the version of the archive"
    record, here = run_files.read_json(run.folder / run_files.PROVENANCE) or {}, inputs.of(config)
    flat, found = dotted.flatten(settings), []
    for name, setting in recorded_inputs.SETTINGS.items():
        if name in record and record[name] != here.get(name):
            what = "differs from the archived file" if name in here else "cannot be read here"
            text = f"{setting} ({flat.get(setting)}) {what}; --set {setting}=PATH gives another location"
            if setting == "data.tokenizer" and name not in here:
                text += ", `warm-cache --tokenizer NAME` puts one into the offline cache"
            found.append(text)
    return "; ".join(found)


def _train(folder: Path, again: Study, runs: Sequence[StudyRun], console: Console) -> None:
    """Train the runs that are not done yet, each with its original code and number of threads."""
    archived = {run.id: run for run in runs}
    groups: dict[tuple[str, int, int], list[RunState]] = {}
    for state in study_state.collect(again):
        if not state.active and state.state != "done":
            groups.setdefault(_resources(archived[state.run.id].folder), []).append(state)
    no_git = {"git_commit": None, "git_dirty": False, "git_patch_sha256": None}  # the code comes from the archive
    for (name, threads, processes), group in groups.items():
        code = folder / study_dir.SNAPSHOTS / name
        settings = SlurmSettings(cpus_per_task=threads, processes_per_node=processes)
        members = queueing.claim(group, console.print)
        with queueing.released_on_error(members):
            surroundings = {**provenance.collect(code), **no_git}
            batch = queueing.prepare(again, [[m] for m in members], settings, code, surroundings=surroundings)
            queueing.record(batch, "local", ["" for _ in members])
        run_batch(batch, None, console)


def _resources(archived: Path) -> tuple[str, int, int]:
    """Return the code snapshot, threads and processes of a finished run."""
    (code,) = provenance.snapshots_of([archived])
    summary = run_facts.read_summary(archived) or {}
    threads = re.search(r"\((\d+) threads\)", str(summary.get("device")))
    return code, int(threads[1]) if threads else 1, int(summary.get("processes") or 1)


def compare(archived: collect.Study, runs: Sequence[StudyRun], again: Study, margin: float | None) -> Result:
    """Compare the repeated runs with the archived ones and return the result.

    The noise between seeds is estimated with the new values in place of the archived ones, so a value that is far off
    would widen the interval by which it is judged.
    """
    states = {state.run.id: state for state in study_state.collect(again)}
    unfinished = [state for state in states.values() if state.state != "done"]
    before = {run.id: run for run in archived.runs}
    after = {run.id: run for run in of_study(again, run_state.reasons(list(states.values()))).runs}
    places = {run.id: run for run in again.runs}
    done = [run for run in runs if states[run.id].state == "done"]
    pairs = tuple(
        replayed.pair(before[run.id], after[run.id], (run, places[run.id]), json.dumps(_environment(run.folder)))
        for run in done
    )
    differences = tuple(dict.fromkeys(found for run in done for found in _differences(run, places[run.id])))
    if unfinished:
        reasons = "; ".join(f"{state.run.id}: {state.state}: {state.reason}" for state in unfinished)
        return Result(Outcome.CANNOT_TELL, f"not finished: {reasons}", pairs, differences)
    analysis = analyze(archived.with_runs(after.get(run.id, run) for run in archived.runs))
    margins = (margin, analysis.margin, analysis.detectable)
    margin = next((value for value in margins if value is not None), None)
    devices = [str(found[run.id].summary.get("device")) for run in runs for found in (before, after)]
    on_cpu = all(device.startswith("cpu") for device in devices)
    noise = analysis.comparison.noise
    outcome, reason = replayed.judge(pairs, noise, margin, on_cpu=on_cpu, same_environment=not differences)
    return Result(outcome, reason, pairs, differences)


def _differences(archived: StudyRun, repeated: StudyRun) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value in the archive, value here) for each difference between the environments of two runs."""
    one, two = (_environment(run.folder) for run in (archived, repeated))
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            yield name, spell(one.get(name, "nothing")), spell(two.get(name, "nothing"))


def _environment(folder: Path) -> dict[str, Any]:
    records = [run_files.read_json(folder / name) or {} for name in (run_files.PROVENANCE, run_files.SUMMARY)]
    flat = dotted.flatten({**records[0], **records[1]})
    return {name: value for name, value in flat.items() if name.startswith(ENVIRONMENT)}
