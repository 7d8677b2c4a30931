"""What is found before a command is queued: its script, its interpreter's modules, its flags; nothing of it is run."""

import shutil
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.command_program import find_program
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import command_preflight
from ablatrix.orchestrator.submit import preflight as checks
from ablatrix.trainer.rundir.errors import ConfigError

SCRIPT = """\
import argparse, json
import helper
try:
    import surely_not_there_optional
except ImportError:
    pass
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--compile", action="store_true")
args = parser.parse_args()
open("trained", "w").close()
"""
FILE = """\
name: study
command: {command}
workdir: {folder}
base: {{rate: 0.1}}
features:
  fast: {{rate: 0.2}}
metrics: {{csv: log.csv}}
launcher: local
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("import json\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return tmp_path


def problems(folder: Path, command: str, old: str = "", new: str = "", launcher: str = "local") -> list[str]:
    path = folder / "study.yaml"
    path.write_text(FILE.format(command=command, folder=folder).replace(old or "\0", new))
    loaded = load_experiment(path)
    found = matrix.runs(loaded, checks.vocabulary)
    listed = list(command_preflight.check_command(loaded, found, launcher))
    assert not (folder / "trained").exists()
    return listed


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --seed={seed} {flags}",
        "'{{python}} -u train.py --seed={{seed}} {{flags}}'",
        "env A=1 nice -n 5 python train.py --seed={seed} {flags}",
        "python -m train --seed {seed} {flags}",
        "python -m torch.distributed.run --nproc_per_node 2 train.py --seed={seed} {flags}",
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(folder: Path, command: str) -> None:
    command = command.replace("{{", "{").replace("}}", "}")
    assert problems(folder, command) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python trian.py {flags}", "trian.py: no such file in {folder} (did you mean train.py?)"),
        ("bash run.sh {flags}", "run.sh: no such file in {folder}"),
        ("nice python sub/train.py {flags}", "sub/train.py: no such file"),
        ("pythn3 train.py {flags}", "pythn3: no such program"),
        ("nice python3.99 train.py {flags}", "python3.99: no such program"),
        ("python -m no_such_thing {flags}", "-m no_such_thing: "),
        ("python train.py {flags}", "train.py requires --seed"),
        ("python train.py --seed=1 --wide=3 {flags}", "--wide: the script has no such flag"),
        ("python train.py --seed=1 --comple {flags}", "has no such flag (did you mean --compile?)"),
    ],
)  # fmt: skip
def test_what_would_not_start(folder: Path, command: str, message: str) -> None:
    found = problems(folder, command)
    assert len(found) == 1 and message.format(folder=folder) in found[0], found
    assert found[0].startswith(f"{folder}/study.yaml:2: command: ")


def test_a_setting_that_the_script_does_not_know_is_named_where_it_stands(folder: Path) -> None:
    (found,) = problems(folder, "python train.py --seed={seed} {flags}", "{rate: 0.2}", "{rte: 0.2}")
    assert found.startswith(f"{folder}/study.yaml:6: --rte: the script has no such flag")
    (found,) = problems(folder, "python train.py --seed={seed} {flags}", "{rate: 0.2}", "{compile: true}")
    assert "--compile: takes no value; write `flags: {style: --a.b=c, booleans: switch}`" in found


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "'--x', action=argparse.BooleanOptionalAction",
            "true",
            "--x: takes no value; write `flags: {style: --a.b=c, booleans: no-prefix}`",
        ),
        ("'-x', '--x', action='store_true', help='text'", "true", "--x: takes no value"),
        ("'--x', '--xx', action='store_true'", "true", "--x: takes no value"),
        ("'--x', nargs='+'", "[1, 2]", "--x: takes several words; write `flags: {style: --a.b=c, lists: words}`"),
        ("'--x', nargs='*'", "[1, 2]", "--x: takes several words"),
        ("'-x', '--x'", "true", ""),
        ("'--x', nargs='?'", "true", ""),
        ("'--x', '--xx', help='text'", "[1, 2]", ""),
    ],
)
def test_values_that_a_flag_does_not_take(folder: Path, option: str, value: str, message: str) -> None:
    source = f"import argparse\np = argparse.ArgumentParser()\np.add_argument('--rate')\np.add_argument({option})\n"
    (folder / "flags.py").write_text(source + "p.parse_args()\n")
    found = problems(folder, "python flags.py {flags}", "{rate: 0.2}", f"{{x: {value}}}")
    assert bool(found) == bool(message) and all(message in line for line in found), found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import surely_not_there.part\n", "helper.py:1: imports surely_not_there, which"),
        ("def f(:\n", "helper.py:1: invalid syntax"),
        ("def f():\n    import surely_not_there\n", ""),
        ("if False:\n    import surely_not_there\n", ""),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import surely_not_there\n", ""),
        ("import ablatrix_run\n", ""),
    ],
)
def test_imports_are_looked_for_in_the_interpreter_of_the_command(folder: Path, source: str, message: str) -> None:
    (folder / "helper.py").write_text(source)
    found = problems(folder, "python train.py --seed={seed} {flags}")
    assert (not found) if not message else (len(found) == 1 and message in found[0]), found


def test_another_python_on_path_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(shutil.which("python3", path="/usr/bin:/bin") or sys.executable)
    command = "python train.py --seed={seed} {flags}\nenv: {PATH: " + f"'{bin_folder}:/bin'" + "}"
    two_ways = "{rate: 0.2, compile: true}\nflags: {style: --key=value, booleans: switch}"
    assert problems(folder, command, "{rate: 0.2}", two_ways) == []
    shown = capsys.readouterr().out
    assert shown.count(f"python is {bin_folder}/python; Ablatrix runs in {sys.executable}") == 1


def test_another_name_of_our_python_is_no_other_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in ("python3", f"python3.{sys.version_info.minor}") if shutil.which(name)]
    for name in ("python", *names):
        assert problems(folder, f"{name} train.py --seed={{seed}} {{flags}}") == []
    assert "Ablatrix runs in" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    ["import argparse\nwhile True: pass\n", "import argparse\nraise SystemExit(3)\n", "print('no parser')\n",
     "import argparse\np = argparse.ArgumentParser()\np.add_argument('--x')\np.parse_known_args()\n"],
)  # fmt: skip
def test_scripts_whose_flags_cannot_be_known_are_left_alone(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_preflight, "HELP_SECONDS", 1.0)
    (folder / "train.py").write_text(source)
    assert problems(folder, "python train.py --seed={seed} {flags}") == []


def test_setup_lines_of_a_job_bring_their_own_python(folder: Path) -> None:
    command = "python train.py {flags}\nslurm: {setup: [module load x]}"
    (folder / "helper.py").write_text("import surely_not_there\n")
    assert problems(folder, command, launcher="sbatch") == []
    assert problems(folder, command.replace("train.py", "trian.py"), launcher="sbatch")


@pytest.mark.parametrize(
    ("words", "script", "interpreter"),
    [
        ("srun --ntasks 4 python -u x.py --a", "x.py", "python"),
        ("conda run --no-capture-output -n env python x.py", "x.py", "conda run --no-capture-output -n env python"),
        ("poetry run python x.py", "x.py", "poetry run python"),
        ("poetry run x.py", "x.py", "poetry run python"),
        ("uv run --with torch python x.py", "x.py", ""),
        ("uv run x.py", "x.py", ""),
        ("torchrun --standalone --nproc_per_node 4 x.py --lr 1", "x.py", ""),
        ("accelerate launch --config_file a.yaml x.py", "x.py", ""),
        ("srun --mpi none accelerate launch x.py", "x.py", ""),
        ("srun bash -l x.sh", "x.sh", ""),
        ("env -u A B=c timeout 3h python x.py", "x.py", "python"),
        ("python -X dev -W error x.py", "x.py", "python"),
    ],
)
def test_the_script_is_found_behind_other_programs(tmp_path: Path, words: str, script: str, interpreter: str) -> None:
    found = find_program(words.split(), tmp_path, "")
    assert found and (found.script, " ".join(found.interpreter)) == (script, interpreter)


@pytest.mark.parametrize(
    "words", ["bash -c x", "python -c x", "apptainer exec i.sif python x.py", "./a.out x.py", "srun ./a"]
)
def test_programs_that_cannot_be_looked_into(tmp_path: Path, words: str) -> None:
    assert find_program(words.split(), tmp_path, "") is None


def test_submit_tells_all_at_once(folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_text(FILE.format(command="python trian.py {flags}", folder=folder))
    loaded = load_experiment(path)
    found = matrix.runs(loaded, checks.vocabulary)
    with pytest.raises(ConfigError, match=r"did you mean train\.py"):
        checks.check_study(loaded, found, "local", found)
