"""Commands through the whole way: from the file over the launcher to the report."""

import csv
import json
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from ablatrix.orchestrator.store import job_command, study_dir, submit_attempts
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import preflight
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.command_studies import HOSTILE, LOSSES, write_study
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace

MISNAMED = re.compile(r"\bNLL\b|\bnats\b|perplexity|val_nll")


def start(workspace: Workspace, study: Path) -> "tuple[Path, subprocess.CompletedProcess[str]]":
    """The study's first run as a job would run it."""
    runs = matrix.runs(load_experiment(study), preflight.vocabulary)[:1]
    (run,) = study_dir.create_study(workspace.folder / "out" / "study", "study", study, {}, runs).runs
    submit_attempts.take(run.folder, 1)
    command = job_command.task_command([(run.folder, 1)])
    return run.folder, subprocess.run(
        command,
        cwd=workspace.folder,
        env=workspace.env(),
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_from_file_to_report(workspace: Workspace) -> None:
    study = write_study(workspace)
    assert "never reach" not in workspace.run("check", study, "--launcher", "local").stderr
    workspace.run("submit", study, "--launcher", "local")
    states = workspace.states()
    assert {cell: (s["state"], s["iter"], s["max_iters"]) for cell, s in states.items()} == dict.fromkeys(
        ("baseline", "rate.low", "rate.high", "nodrop"), ("done", 40, 40)
    )
    rows = workspace.loss("baseline")
    assert rows[0] == ["iter", "loss", "val_loss", "lr", "grad_norm", "tokens"]
    assert rows[1] == ["0", "4.0", "4.12", "", "", "0"]
    assert rows[-1] == ["40", "3.6", "3.72", "", "", "2560"]
    assert len(rows) == 1 + 21

    assert "4 done already" in workspace.run("submit", study, "--launcher", "local").stdout
    workspace.run("report")
    report = workspace.folder / "out/study/report"
    with (report / "comparison.csv").open(newline="") as file:
        cells = {row["cell"]: row for row in csv.DictReader(file)}
    assert float(cells["rate.high"]["effect"]) == pytest.approx(-0.4)
    assert float(cells["rate.low"]["effect"]) == pytest.approx(0.2)
    assert float(cells["nodrop"]["effect"]) == pytest.approx(-0.02)
    assert cells["nodrop"]["flags"] == ""
    text = (report / "report.md").read_text()
    assert "train_script.py" in text.replace("\\_", "_")  # Markdown
    assert "No held-out loss" not in text

    folder = workspace.run_folder("baseline")
    shown = workspace.run("show", "baseline").stdout
    assert "settings.learning_rate  0.01" in shown
    (folder / "argv.json").unlink()
    subprocess.run(["sh", folder / run_files.ARGS], check=True, capture_output=True, env=workspace.env())
    assert (folder / "argv.json").exists(), "args.txt does not start the command"


def test_without_a_held_out_loss_the_report_says_so(workspace: Workspace) -> None:
    study = write_study(workspace, metrics={"regex": LOSSES[1]}, features={"nodrop": {"dropout": 0.0}})
    workspace.run("submit", study, "--launcher", "local", "--only", "baseline", "--only", "nodrop")
    shown = " ".join(workspace.run("report").stdout.split())
    assert "study: training loss against the baseline; lower is better" in shown
    assert "No held-out loss was reported: the headline is the mean training loss over the last tenth" in shown
    text = (workspace.folder / "out/study/report/report.md").read_text()
    assert "the reference: training loss 3.6100 (" in text
    assert not MISNAMED.search(text)


ACCURATE = """\
import sys
flags = dict(word[2:].split("=") for word in sys.argv[1:])
with open(flags["out"] + "/m.csv", "w") as file:
    print("step,train_loss,val_mse,val_acc", file=file)
    for step in range(1, 11):
        noise = int(flags["seed"]) * step % 3 / 1000
        good = (1 + float(flags["width"])) / 10
        print(step, 2 / step, 1 / step - good / 10, 0.05 * step + good + noise, sep=",", file=file)
"""


def test_an_accuracy_is_compared_under_its_name_and_in_its_direction(workspace: Workspace) -> None:
    (workspace.folder / "t.py").write_text(ACCURATE)
    changes = {
        "command": "{python} t.py --out={run_dir} --seed={seed} {flags}",
        "base": {"width": 1},
        "features": {"wide": {"width": 2}, "narrow": {"width": 0}},
        "design": ["baseline", "one_at_a_time"],
        "seeds": 2,
        "metrics": {"csv": "m.csv", "compare": "val_acc", "higher_is_better": True, "name": "accuracy"},
    }
    study = write_study(workspace, **changes)
    workspace.run("submit", study, "--launcher", "local")
    folder = next((workspace.folder / "out/study").glob("wide-seed1-*"))
    assert (folder / "loss.csv").read_text().splitlines()[0].endswith(",val_acc")
    assert " accuracy" in workspace.run("status").stdout
    shown = " ".join(workspace.run("report").stdout.split())
    assert "study: accuracy against the baseline; higher is better" in shown
    report = workspace.folder / "out/study/report"
    with (report / "comparison.csv").open(newline="") as file:
        cells = {row["cell"]: row for row in csv.DictReader(file)}
    assert float(cells["wide"]["effect"]) == pytest.approx(0.1)
    assert float(cells["baseline"]["accuracy"]) == pytest.approx(0.7015)
    assert not [name for name in cells["baseline"] if "loss" in name]
    verdicts = {cell: row["verdict"] for cell, row in cells.items()}
    assert verdicts == {"baseline": "baseline", "wide": "helps", "narrow": "hurts"}
    text = (report / "report.md").read_text()
    assert "right of 0 is better" in text and "higher is better" in text
    assert "at a matched number of steps" in text and "equal tokens" not in text
    assert all(f">{curve}<" in (report / "report.html").read_text() for curve in ("Accuracy", "Training loss"))
    for name in ("report.md", "report.html", "comparison.csv", "comparison.tex", "summary.csv"):
        assert not MISNAMED.search((report / name).read_text()), name

    mse = write_study(workspace, **changes | {"metrics": {"csv": "m.csv", "compare": "val_mse", "name": "MSE"}})
    assert "6 done already" in workspace.run("submit", mse, "--launcher", "local").stdout
    shown = " ".join(workspace.run("report").stdout.split())
    assert "6 runs ended before `metrics.compare` was val_mse and cannot be compared" in shown


def test_the_plan_knows_no_more_than_the_file(workspace: Workspace) -> None:
    study = write_study(workspace)
    assert "4 runs, 0.0102 M tokens" in workspace.run("plan", study).stdout
    planned = json.loads(workspace.run("plan", study, "--format", "json").stdout)["runs"][2]
    assert (planned["parameters"], planned["tokens"]) == (None, 2560)
    assert planned["config"]["settings"]["learning_rate"] == 0.02
    assert "feature rate.high" in workspace.run("plan", study, "--format", "tree").stdout


def expected_words(run_dir: Path) -> list[str]:
    return [f"--out_dir={run_dir}", *(f"--{key}={value}" for key, value in HOSTILE.items()), "--learning_rate=0.01"]


def test_hostile_values_arrive_as_they_are(workspace: Workspace) -> None:
    base = {**HOSTILE, "learning_rate": 0.01}
    command = [
        "python",
        "train_script.py",
        "--out_dir={run_dir}",
        "{flags}",
        "--max_iters=4",
        "{dash}",
        "{shell}",
        "a {{b",
    ]
    metrics = {"regex": LOSSES}
    env = {"HOSTILE": "{shell}\n{quotes}"}
    design = {"design": ["baseline"], "features": {}, "metrics": metrics, "command": command, "env": env}
    rest = ["--max_iters=4", HOSTILE["dash"], HOSTILE["shell"], "a {b"]
    study = write_study(workspace, base=base, **design)
    workspace.run("submit", study, "--launcher", "local")
    folder = workspace.run_folder("baseline")
    flags = [word for word in expected_words(folder) if not word.startswith(("--dash=", "--shell=", "--quotes="))]
    assert json.loads((folder / "argv.json").read_text()) == flags + rest
    # and what can be pasted into a shell says the same
    shown = shlex.split((folder / run_files.ARGS).read_bytes().decode())
    assert shown[3:] == [
        "env",
        f"HOSTILE={HOSTILE['shell']}\n{HOSTILE['quotes']}",
        "python",
        "train_script.py",
        *flags,
        *rest,
    ]


def test_the_commands_own_modules_are_its_own(workspace: Workspace) -> None:
    """Packages called `trainer` or `models` of the user's are not hidden by ours."""
    packages = workspace.folder / "lib"
    packages.mkdir()
    (packages / "trainer.py").write_text("loss = 1.5\n")
    script = "import trainer, sys; print('iter 1: loss', trainer.loss, end=', time 1ms\\n')"
    study = write_study(
        workspace,
        command=["python", "-c", script],
        base={},
        features={},
        design=["baseline"],
        env={"PYTHONPATH": str(packages)},
        workdir=str(workspace.folder),
        metrics={"regex": LOSSES},
    )
    folder, _ = start(workspace, study)
    assert run_files.read_text(folder / run_files.LOSS).splitlines()[1].startswith("1,1.5,")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": {"learning_rate": 0.01, "max_iters": 9, "crash": 4}}, "exit code 1: RuntimeError: planted"),
        ({"metrics": {"csv": "none.csv"}}, "none.csv, the file with its metrics, does not exist"),
        ({"metrics": {"regex": "never (?P<iter>.*)"}}, "no line matches the patterns"),
        ({"command": ["sh", "-c", "kill -9 $$", "{flags}"]}, "killed by SIGKILL, probably out of memory"),
        ({"command": ["sh", "-c", "exit 76", "{flags}"]}, "exit code 76"),
    ],
)
def test_failures_are_named(workspace: Workspace, changes: dict[str, object], words: str) -> None:
    folder, ended = start(workspace, write_study(workspace, workdir=str(workspace.folder), **changes))
    assert ended.returncode != 0
    last = read_events(folder)[-1]
    assert (last["event"], words in last["reason"]) == ("failed", True), last
    assert not (folder / run_files.SUMMARY).exists()


def test_what_cannot_be_started_is_found_by_the_check(workspace: Workspace) -> None:
    study = write_study(workspace, command="pithon train_script.py {flags}")
    shown = workspace.run("check", study, "--launcher", "local", code=2).stderr
    assert "study.yaml:2: command: pithon: no such program" in shown
    study = write_study(workspace, workdir="nowhere")
    assert "workdir: " in workspace.run("check", study, "--launcher", "local", code=2).stderr
    assert not (workspace.folder / "out").exists()


def test_a_smoke_test_ends_after_its_steps(workspace: Workspace) -> None:
    study = write_study(
        workspace,
        base={"learning_rate": 0.01, "max_iters": 100_000, "pause": 0.01},
        features={},
        design=["baseline"],
        budget=1e-9,
    )
    refused = workspace.run("submit", study, "--launcher", "local", "--smoke", "3", code=2)
    assert "node-hours, the budget is 1e-09" in refused.stderr
    (summary,) = (workspace.folder / "out/study/smoke").glob("*/summary.json")
    assert 3 <= json.loads(summary.read_text())["iters"] < 5000


def test_files_of_ours_that_the_command_writes_over(workspace: Workspace) -> None:
    """minGPT leaves a config.json and an args.txt in its folder, others a summary.json: ours win, theirs are kept."""
    script = (
        "import os; os.chdir(os.environ['ABLATRIX_RUN_DIR']); "
        "[open(n, 'w').write('[1]') for n in ('config.json', 'args.txt', 'summary.json', 'loss.csv')]; "
        "print('iter 1: loss 2.5, time 1ms', flush=True)"
    )
    study = write_study(
        workspace, command=["python", "-c", script], base={}, features={}, design=["baseline"],
        metrics={"regex": LOSSES},
    )  # fmt: skip
    folder, ended = start(workspace, study)
    assert ended.returncode == 0
    assert run_files.read_text(folder / run_files.LOSS).splitlines()[1].startswith("1,2.5,")
    assert json.loads((folder / "config.json").read_text())["command"][0] == "python"
    assert (folder / "args.txt").read_text().startswith("cd ")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["measure"] == "loss"
    assert summary["timing"]["host"] == socket.gethostname() and summary["timing"]["hardware"]
    for name in ("config.json", "args.txt", "summary.json"):
        assert (folder / f"command-{name}").read_text() == "[1]"


def test_the_recipe_of_a_shell_script(workspace: Workspace) -> None:
    for name in ("shell_script.yaml", "shell_script.sh"):
        shutil.copy(code_root() / "docs" / "recipes" / name, workspace.folder)
    workspace.run("submit", "shell_script.yaml", "--launcher", "local", "--only", "baseline")
    assert workspace.states("shell-script")["baseline"]["state"] == "done"
    assert len(workspace.loss("baseline", "shell-script")) == 21
