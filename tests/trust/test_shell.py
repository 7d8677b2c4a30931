"""Generated experiments through the job scripts, under real bash: what arrives is what was planned, and nothing runs.

Python is replaced by a stub that writes down its command line, srun by one that then starts it. No shell stands between
the job's task and the trainer, so that part runs as it is, in this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.job import command_runner, task
from ablatrix.orchestrator.job.command_runner import Runner
from ablatrix.orchestrator.slurm import batch, helper_jobs, sbatch
from ablatrix.orchestrator.slurm import commands as slurm
from ablatrix.orchestrator.slurm.batch import Batch, job_ids
from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher
from ablatrix.orchestrator.slurm.submitit import SubmititLauncher
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.submit import local_queue, queueing
from ablatrix.orchestrator.verbs.plan import Options, Plan, job_scripts, make_plan
from ablatrix.trainer.config import from_flags
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from tests.support.evidence import Cases, Tally
from tests.trust import shell_stubs
from tests.trust.hostile_matrices import Drawer, Matrix, draw
from tests.trust.shell_stubs import RECORD, Record, sbatch_options

CHUNK = 25  # matrices per process and folder
# What a launcher's job has of its own
OWN_VARIABLES = {
    *(
        "SUBMITIT_EXECUTOR",
        "SRUN_CPUS_PER_TASK",
        "SLURM_JOB_ID",
        "SLURM_JOB_NODELIST",
        "SLURM_ARRAY_TASK_ID",
        "CUDA_VISIBLE_DEVICES",
    ),
    *("PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES", RECORD),  # and what bash itself sets
}


@dataclass
class Lab:
    """A folder with the stubs, in which one matrix after the other is tried."""

    root: Path
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def record(self) -> Path:
        return self.root / "record"

    @property
    def python(self) -> Path:
        """Stands for the interpreter, in a folder that needs quotes."""
        return self.root / "env $(touch CANARY) 'x' \"y\"" / "python"

    @property
    def program(self) -> Path:
        """Stands for the user's trainer."""
        return self.root / "; touch CANARY ; #" / "it's train"

    def bash(self, jobs: Sequence[tuple[Path, Path, int]]) -> list[Record]:
        """Run job scripts: (working folder, script, number in the array). Each must end well."""
        told = b"".join(os.fsencode(word) + b"\0" for job in jobs for word in map(str, job))
        result = subprocess.run([self.root / "bin/driver"], input=told, capture_output=True, check=False, timeout=60)
        assert result.stdout.split() == [b"0"] * len(jobs), (result.stdout, result.stderr)
        assert not result.stderr, result.stderr
        return shell_stubs.read(self.record)


def prepared(root: Path) -> Lab:
    lab = Lab(root)
    shell_stubs.install(root / "bin")
    for path in (lab.python, lab.program):
        shell_stubs.program(path)
    return lab


def try_matrices(root: Path, seed: int, numbers: range) -> Counter[str]:
    """Try these matrices in a process of their own; what was counted. AssertionErrors name the matrix."""
    lab = prepared(root)
    for number in numbers:
        rng = random.Random(f"{seed}:{number}")
        matrix = draw(rng, number, str(root / "CANARY"), str(lab.program))
        with pytest.MonkeyPatch.context() as patch:
            try:
                _try(matrix, lab, patch)
            except Exception as error:
                raise AssertionError(f"matrix {number} of seed {seed}: {error!r}\n{matrix.text}") from error
    shutil.rmtree(root)
    return lab.counts


def _try(matrix: Matrix, lab: Lab, patch: pytest.MonkeyPatch) -> None:
    home = lab.root / "work"
    folder = home / matrix.folder
    folder.mkdir(parents=True)
    surround(matrix, lab, folder, patch)
    before = {**os.environ}
    (folder / "e.yaml").write_bytes(matrix.text.encode())
    plan = make_plan(Options(Path("e.yaml"), launcher="local", sets=matrix.sets))
    members = claimed(plan)
    check_planned(matrix, plan, folder)
    refused = refusals(plan)
    jobs = by_slurm(matrix, plan, members, lab, "submitit" not in refused) if "sbatch" not in refused else None
    here = by_local(plan, members, lab)
    if jobs is not None:
        compare(jobs, here, lab)
        shown_scripts(matrix, plan, here, lab)
    lab.counts.update(f"refused by {name}" for name in refused)
    by_task(matrix, plan, here[0], lab)
    assert {**os.environ} == before
    os.chdir(lab.root)
    top = Path(matrix.tree["output"]).parts[0]
    assert sorted(os.listdir(folder)) == sorted({"e.yaml", top}), "stray files"
    assert sorted(os.listdir(lab.root)) == sorted(["bin", "work", lab.python.parent.name, lab.program.parent.name])
    assert not [path for path, _, names in os.walk(home) for name in names if "CANARY" in name]
    shutil.rmtree(home)
    lab.counts["matrices"] += 1


def surround(matrix: Matrix, lab: Lab, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The user's shell: working folder, PATH with the stubs, variables."""
    patch.chdir(folder)
    patch.setenv("PATH", f"{lab.root / 'bin'}:{os.environ['PATH']}")
    patch.setenv(RECORD, str(lab.record))
    patch.setenv("PYTHONPATH", "/never/$(touch CANARY):/two  'blanks'")
    for name, text in matrix.environment.items():
        patch.setenv(name, text)
    patch.setattr(sys, "executable", str(lab.python))
    patch.setattr(study_dir, "surroundings", lambda code: {})  # git and package versions, for provenance.json
    patch.setattr(
        command_runner, "end_leftovers", lambda run_dir, attempt: None
    )  # looks at every process of the machine
    patch.setattr(local_queue, "POLL_SECONDS", 0.002)


def refusals(plan: Plan) -> dict[str, str]:
    """Launchers that cannot have this study's folder, and why, in a line: only what a script cannot hold."""
    found = {}
    for name in ("sbatch", "submitit"):
        try:
            batch.check_folder(plan.folder, name)
        except UserError as error:
            found[name] = str(error)
    path = str(plan.folder.resolve())
    unsafe = not path.isprintable() or "\\" in path
    assert list(found) == ["sbatch", "submitit"] * unsafe or (list(found) == ["submitit"]) == ("%" in path)
    assert all(len(line.splitlines()) == 1 for line in found.values())
    return found


def claimed(plan: Plan) -> list[tuple[study_dir.StudyRun, int]]:
    study = plan.create()
    assert all(submit_attempts.take(run.folder, 1) for run in study.runs)
    return [(run, 1) for run in study.runs]


def check_planned(matrix: Matrix, plan: Plan, folder: Path) -> None:
    """What was written into the run folders is what the matrix was made of."""
    for run in plan.runs:
        place = folder / plan.folder / run.id
        if not matrix.is_command:
            config = run_files.read_json(place / run_files.CONFIG) or {}
            for key, value in matrix.settings(run.features).items():
                section, _, name = key.partition(".")
                assert config[section][name] == value, key
            continue
        spec = run_files.read_json(place / "command.json") or {}
        places = places_of(run, place)
        assert spec["command"] == matrix.argv(run.features, places)
        assert spec["env"] == matrix.variables(run.features, places)


def places_of(run: Any, place: Path) -> dict[str, str]:
    known = {"run_dir": str(place), "study_dir": str(place.parent), "run_id": place.name, "cell": run.cell}
    return {**known, "seed": str(run.seed), "config_file": str(place / "settings.json")}


# ---- the launchers


@dataclass
class Started:
    """What a launcher's job has started for a batch, task by task."""

    commands: list[list[str]]
    records: list[Record]


def by_slurm(matrix: Matrix, plan: Plan, members: Any, lab: Lab, submitit: bool) -> dict[str, list[Started]]:
    """Every array through sbatch and through submitit, and the report's job, all in one bash."""
    settings = plan.loaded.experiment.slurm
    study, cwd, code = study_dir.load_study(plan.folder), Path.cwd(), plan.folder / "code"
    jobs: list[tuple[Path, Path, int]] = []
    batches: list[tuple[str, Batch, Any]] = []
    for chunk in queueing.split(members, settings, matrix.most_tasks):
        batch = queueing.prepare(study, chunk, settings, code)
        SbatchLauncher().launch(batch)
        script = (study.folder / "logs" / f"{batch.token}.sbatch").resolve()
        check_options(script.read_text(), batch, script.parent / name_of_log(batch))
        jobs += [(cwd, script, index) for index in range(len(chunk))]
        batches.append(("sbatch", batch, None))
        if not submitit:
            continue
        [base] = SubmititLauncher().launch(batch)
        ids = job_ids(base, len(batch.jobs))
        script = (study.folder / "logs/submitit" / batch.token / base).resolve()
        (script,) = script.parent.glob(f"{script.name}/*_submission.sh")
        check_options(script.read_text(), batch, None)
        jobs.append((cwd, script.resolve(), 0))
        batches.append(("submitit", batch, ids))
    report = study.folder.resolve() / "report.sbatch"
    report.write_text(helper_jobs.script(batch, helper_jobs.REPORT))
    records = lab.bash([*jobs, (Path("/"), report, 0)])
    assert [record.srun for record in records] == [True, False] * len(jobs) + [False]
    started = [record for record in records if not record.srun]
    last = started.pop()
    assert last.argv == ["-P", "-m", "orchestrator", "report", str(study.folder)]
    assert last.folder == str(cwd)
    found: dict[str, list[Started]] = {"sbatch": [], "submitit": []}
    for name, batch, ids in batches:
        count = len(batch.jobs) if name == "sbatch" else 1
        mine, started = started[:count], started[count:]
        if name == "submitit":
            mine = unpickled(mine[0], ids, study.folder / "logs/submitit" / batch.token)
        found[name].append(Started(batch.commands(), mine))
        lab.counts[f"{name} tasks"] += len(mine)
    lab.counts["reports"] += 1
    return found


def name_of_log(batch: Batch) -> str:
    return "%A_%a.out" if len(batch.jobs) > 1 else "%j.out"


def check_options(text: str, batch: Batch, log: Path | None) -> None:
    """Exactly the options that were asked for, with exactly those values."""
    told = dict(word[2:].partition("=")[::2] for word in sbatch_options(text))
    asked = {key: str(value) for key, value in sbatch.sbatch_options(batch.settings).items()}
    own = {"job-name": batch.study.name, "comment": slurm.comment(batch.token), "nodes": "1", "requeue": ""}
    own |= {"signal": f"USR2@{batch.settings.signal_seconds}", "open-mode": "append", "export": exported_env.option()}
    if len(batch.jobs) > 1:
        own["array"] = f"0-{len(batch.jobs) - 1}"
        if log is None or batch.settings.max_parallel:
            own["array"] += f"%{min(batch.settings.max_parallel or len(batch.jobs), 10**6)}"
    if log is not None:
        own |= {"output": str(log.parent).replace("%", "%%") + f"/{log.name}", "ntasks": "1"}
    else:
        own |= {"ntasks-per-node": "1", "output": told["output"]}
        if len(batch.jobs) > 1:
            own["array"] = f"0-{len(batch.jobs) - 1}%{min(batch.settings.max_parallel or 10**6, len(batch.jobs))}"
    assert told == {**asked, **own}


def shown_scripts(matrix: Matrix, plan: Plan, here: Sequence[Record], lab: Lab) -> None:
    """What `plan --sbatch` prints, saved and run by bash: every tenth matrix, as it is the same template."""
    if matrix.number % 10:
        return
    (text,) = job_scripts(dataclasses.replace(plan, launcher="sbatch"))
    script = plan.folder.resolve() / "shown.sbatch"
    script.write_text(text)
    count = -(-len(here) // plan.loaded.experiment.slurm.runs_per_job)
    records = [record for record in lab.bash([(Path("/"), script, i) for i in range(count)]) if not record.srun]
    words = [word for record in records for word in record.argv[3:]]
    assert words == [word for record in here for word in record.argv[3:]]
    assert {record.folder for record in records} == {os.getcwd()}
    lab.counts["shown scripts"] += 1


def unpickled(record: Record, ids: Sequence[str], logs: Path) -> list[Record]:
    """What submitit's own program starts for each task: os.execv of our command."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder = logs.resolve() / "%j"
    assert record.argv == ["-P", "-u", "-m", "submitit.core._submit", str(folder)]
    found = []
    for name in ids:
        delayed = DelayedSubmission.load(JobPaths(folder, job_id=name, task_id=0).submitted_pickle)
        assert delayed.function is os.execv
        program, argv = delayed.args
        assert program == argv[0] == sys.executable
        found.append(Record(False, argv[1:], record.folder, record.environment))
    return found


def by_local(plan: Plan, members: Any, lab: Lab) -> list[Record]:
    """Every run through the queue of this machine."""
    study, settings = study_dir.load_study(plan.folder), plan.loaded.experiment.slurm
    batch = Batch(study, [[member] for member in members], submit_attempts.new_token(), settings, plan.folder / "code")
    local_queue.LocalQueue(["0"]).run(batch, lambda: None)
    records = shell_stubs.read(lab.record)
    assert [[sys.executable, *record.argv] for record in records] == batch.commands()
    lab.counts["local tasks"] += len(records)
    return records


def compare(jobs: dict[str, list[Started]], here: Sequence[Record], lab: Lab) -> None:
    """The same command line, working folder and variables, whichever launcher it was."""
    for started in (*jobs["sbatch"], *jobs["submitit"]):
        assert [[sys.executable, *record.argv] for record in started.records] == started.commands
    for one, other in zip(jobs["sbatch"], jobs["submitit"] or jobs["sbatch"], strict=True):
        for left, right in zip(one.records, other.records, strict=True):
            assert (left.argv, left.folder) == (right.argv, right.folder)
        assert told(one.records[0]) == told(other.records[0])
    words = [word for job in jobs["sbatch"] for record in job.records for word in record.argv[3:]]
    assert words == [word for record in here for word in record.argv[3:]]
    first = jobs["sbatch"][0].records[0]
    assert first.folder == here[0].folder == os.getcwd()
    variables = told(first, setup=False)
    mine = told(here[0])
    assert {**variables, "OMP_NUM_THREADS": mine["OMP_NUM_THREADS"]} == mine


def told(record: Record, setup: bool = True) -> dict[str, str]:
    """The variables of a job that its launcher does not have of its own; setup: those of `slurm.setup` too."""
    variables = record.environment or {}
    return {
        name: text
        for name, text in variables.items()
        if name not in OWN_VARIABLES and (setup or not name.startswith("SETUP_"))
    }


def by_task(matrix: Matrix, plan: Plan, record: Record, lab: Lab) -> None:
    """What the job's task starts for the first run, and what that starts; then args.txt, pasted into bash."""
    run, folder = plan.runs[0], plan.folder / plan.runs[0].id
    place = Path.cwd() / folder
    with restored_signals():
        assert task.main(record.argv[3:]) == 0
        (trainer,) = shell_stubs.read(lab.record)
        if matrix.is_command:
            assert trainer.argv == ["-P", "-m", "ablatrix.orchestrator.job", str(folder)]
            Runner(folder).run()
    if not matrix.is_command:
        words = trainer.argv[3:]
        assert trainer.argv[:3] == ["-P", "-m", "trainer"]
        config = from_flags(words)
        assert (config.system.work_dir, config.data.file_path) == (str(folder), matrix.base["data.file_path"])
        lab.counts["trainers"] += 1
        return
    assert not {"command-args.txt", "command-config.json"} & set(os.listdir(place))
    places = places_of(run, place)
    workdir = os.path.realpath(matrix.tree.get("workdir", ".").format(**places))
    for started in (*shell_stubs.read(lab.record), *paste(place / run_files.ARGS, lab)):
        assert started.argv == matrix.argv(run.features, places)[1:]
        assert started.folder == workdir
        for name, text in matrix.variables(run.features, places).items():
            assert (started.environment or {})[name] == text
    lab.counts["commands"] += 1


def paste(file: Path, lab: Lab) -> list[Record]:
    """What bash starts that reads this file as if it were typed."""
    done = subprocess.run(["bash"], input=file.read_bytes(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    records = shell_stubs.read(lab.record)
    assert len(records) == 1
    return records


@contextlib.contextmanager
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- the tests


def test_generated_matrices_under_bash(tmp_path: Path, seed: int, cases: Cases, tally: Tally) -> None:
    """Each matrix: sbatch's script, submitit's, the report's, the local queue, the job's task, args.txt."""
    number = cases(60, 10_000)
    chunks = [range(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]
    work = [(tmp_path / f"{chunk.start}", seed, chunk) for chunk in chunks]
    if number > 1000:
        with multiprocessing.get_context("spawn").Pool() as pool:
            counts = sum(pool.starmap(try_matrices, work, chunksize=1), Counter[str]())
    else:
        counts = sum((try_matrices(*one) for one in work), Counter[str]())
    assert counts["matrices"] == number
    detail = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if name != "matrices")
    tally("argv, folder and variables equal the plan under bash", cases=number, detail=f"0 canaries; {detail}")


def test_a_failure_that_a_setup_line_marks_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under both launchers: a run without its modules would fail later, or be another run."""
    lab = prepared(tmp_path / "lab")
    matrix = draw(random.Random(1), 0, str(tmp_path / "CANARY"), str(lab.program))
    matrix.tree["slurm"]["setup"] = ["false || exit 1"]
    (tmp_path / "work").mkdir()
    surround(matrix, lab, tmp_path / "work", monkeypatch)
    Path("e.yaml").write_text(matrix.text)
    plan = make_plan(Options(Path("e.yaml"), launcher="local", sets=matrix.sets))
    run, attempt = claimed(plan)[0]
    batch = Batch(
        study_dir.load_study(plan.folder), [[(run, attempt)]], "TOKEN", plan.loaded.experiment.slurm, tmp_path
    )
    for launcher in (SbatchLauncher(), SubmititLauncher()):
        script = tmp_path / launcher.name
        script.write_text(launcher.script(batch))
        assert subprocess.run(["bash", script], check=False).returncode == 1, launcher.name
    assert not lab.record.exists()


def test_args_of_our_trainer_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, cases: Cases, tally: Tally
) -> None:
    """args.txt, read by bash as if it were typed, starts the trainer with the very words that it was written for."""
    from ablatrix.trainer.run import _open_folder

    lab, number = prepared(tmp_path / "lab"), cases(40, 2000)
    monkeypatch.chdir(lab.root)
    monkeypatch.setenv(RECORD, str(lab.record))
    monkeypatch.setattr(sys, "executable", str(lab.python))
    before = sorted(os.listdir(lab.root))
    for index in range(number):
        drawer = Drawer(random.Random(f"{seed}:{index}"), str(tmp_path / "CANARY"))
        words = [f"--data.file_path={drawer.path()}", f"--info.description={drawer.text()}"]
        config = from_flags(words)
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            _open_folder(Path(folder), config, words)
            (pasted,) = paste(Path(folder) / run_files.ARGS, lab)
        assert pasted.argv == ["-m", "trainer", *words], index
    assert sorted(os.listdir(lab.root)) == before
    assert not (tmp_path / "CANARY").exists()
    tally("a trainer's args.txt, pasted into bash, gives its argv", cases=number)
