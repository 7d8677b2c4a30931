"""The installed package, away from its checkout: a workspace of its own, from `init` to the report."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ablatrix.orchestrator.store import code_snapshot
from ablatrix.orchestrator.verbs import init
from ablatrix.trainer.rundir.errors import UserError
from tests.support.checkout import copy_checkout
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]


def copy_source(source: Path) -> None:
    """Copy what the package is built from."""
    root = code_snapshot.code_root()
    copy_checkout(source)
    for name in ("pyproject.toml", "README.md", "LICENSE", "ablatrix_run.py"):
        shutil.copy(root / name, source / name)


def install(folder: Path, *words: str) -> Path:
    """Run pip for a fresh virtual environment that sees the packages of the running one; return its command."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environ = os.environ | {"PIP_PYTHON": str(folder / "venv/bin/python")}
    subprocess.run([sys.executable, *words], check=True, cwd=folder, env=environ)
    return folder / "venv" / "bin" / "ablatrix"


@pytest.fixture(scope="module")
def ablatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    copy_source(folder / "source")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    command = install(folder, "-m", "pip", "--disable-pip-version-check", "install", *options, "./source")
    shutil.rmtree(folder / "source")
    return command


def call(command: Path, *words: object, folder: Path, code: int = 0, **environment: object) -> str:
    """What the command printed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("ABLATRIX", "PYTHON"))}
    environ = plain | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    line = [str(command), *map(str, words)]
    done = subprocess.run(line, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def names_of_ours_and_others(folder: Path) -> None:
    """A user's files with the names of Ablatrix's packages, of Python's modules and of required packages."""
    for name in (
        "models/__init__.py",
        "models/mine.py",
        "trainer.py",
        "random.py",
        "yaml.py",
        "numpy.py",
        "sbatch/x.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('this file of the user was run')\n")


OWN = """
import helper
from torch import nn


class Mine(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(config.n_embd, config.n_embd)
        print("made by", __file__, "with", helper.__file__)

    def forward(self, x):
        return self.linear(x).relu()
"""
CONFIG = """\
  own:
    extends: quick
    features: {swiglu: null, rmsnorm: null, mine: {model.feedforward: "mine:Mine"}}
    design: [baseline, one_at_a_time]
    base: {data.test_size: 6, trainer.eval_tokens: 500}
    vars: {iters: 4}
"""


def test_a_workspace_from_init_to_the_report(ablatrix: Path, tmp_path: Path, offline_cache: Path, corpus: Path) -> None:
    shown = call(ablatrix, "init", "work", folder=tmp_path)
    work = tmp_path / "work"
    assert sorted(path.name for path in work.iterdir()) == sorted(init.workspace_files())
    assert "ablatrix submit ablation.yaml" in shown
    assert "is not empty" in call(ablatrix, "init", "work", folder=tmp_path, code=2)

    places = {"ABLATRIX_CACHE": offline_cache, "ABLATRIX_DATA": corpus}
    assert "--sample-corpus" in call(ablatrix, "warm-cache", "--help", folder=work)
    call(ablatrix, "warm-cache", "--tokenizer", "sample", folder=work, **places)
    assert (work / "data" / "sample.jsonl").stat().st_size > 1e6

    (work / "mine.py").write_text(OWN)
    (work / "helper.py").write_text("")
    names_of_ours_and_others(work)
    (work / "ablation.yaml").write_text((work / "ablation.yaml").read_text() + CONFIG)
    call(ablatrix, "submit", "ablation.yaml#own", "--launcher", "local", folder=work, **places)
    assert "3 done" in call(ablatrix, "status", folder=work)
    assert "verdict" in call(ablatrix, "report", folder=work)
    assert (work / "out" / "ablation-own" / "report" / "report.html").stat().st_size > 10_000

    (run,) = (work / "out" / "ablation-own").glob("mine-*")
    assert f'"{ablatrix.parent / "python"}"' in (run / "provenance.json").read_text()
    assert '"ablatrix": "' in (run / "provenance.json").read_text()
    (code,) = (work / "out" / ".snapshots").iterdir()
    taken = ["ablatrix", "ablatrix_run.py", "helper.py", "mine.py", "trainer.py"]
    assert sorted(path.name for path in code.iterdir() if path.name != "__pycache__") == taken
    assert f"made by {code / 'mine.py'} with {code / 'helper.py'}" in call(ablatrix, "logs", "mine", folder=work)
    shown = call(ablatrix, "show", "mine", folder=work)
    assert "model.feedforward  mine:Mine  feature mine, ablation.yaml:16" in re.sub(" {2,}", "  ", shown)


def test_make_installs_the_command_of_a_checkout(tmp_path: Path) -> None:
    """Without a network; edits of the checkout are run, and the user's own modules of our names are not."""
    copy_source(tmp_path / "source")
    (line,) = re.findall(r"^EDITABLE := (.*)$", (code_snapshot.code_root() / "Makefile").read_text(), re.MULTILINE)
    command = install(tmp_path, *line.split(), "./source")
    main = tmp_path / "source" / "orchestrator" / "__main__.py"
    main.write_text(main.read_text().replace("    run_verb()", "    print('edited')\n    run_verb()"))
    work = tmp_path / "work"
    work.mkdir()
    names_of_ours_and_others(work)
    shown = call(command, "status", folder=work, code=2, PYTHONPATH=tmp_path / "elsewhere")
    assert shown.startswith("edited") and f"start with: {command} submit FILE.yaml" in shown


def test_hints_name_the_command_that_was_typed(ablatrix: Path, tmp_path: Path) -> None:
    onpath = {"PATH": f"{ablatrix.parent}{os.pathsep}{os.environ['PATH']}"}
    assert f"start with: {ablatrix} submit FILE.yaml" in call(ablatrix, "status", folder=tmp_path, code=2)
    (tmp_path / "my study.yaml").touch()
    assert "start with: ablatrix submit 'my study.yaml'" in call(ablatrix, "status", folder=tmp_path, code=2, **onpath)
    python = ablatrix.with_name("python")
    shown = call(python, "-m", "ablatrix", "status", folder=ablatrix.parents[1], code=2)
    assert "start with: bin/python -m ablatrix submit FILE.yaml" in shown
    shown = call(python, "-m", "ablatrix", "init", tmp_path / "new", folder=ablatrix.parents[1])
    assert f"{python} -m ablatrix submit ablation.yaml" in shown, "the next commands are given in another folder"
    assert f"ABLATRIX ?= {python} -m ablatrix" in (tmp_path / "new" / "Makefile").read_text()
    flags = ["--data.file_path=x", "--data.tokenizer=sample", f"--system.cache_dir={tmp_path}"]
    shown = call(python, "-m", "ablatrix.trainer", *flags, folder=tmp_path, code=2)
    assert f"{ablatrix} warm-cache --tokenizer sample --cache-dir" in shown, "a trainer's log is read anywhere"


def test_job_scripts_and_names_on_the_search_path(ablatrix: Path, tmp_path: Path, offline_cache: Path) -> None:
    call(ablatrix, "init", "studies", folder=tmp_path)
    places = {"ABLATRIX_CACHE": offline_cache, "ABLATRIX_PATH": tmp_path / "studies"}
    script = call(ablatrix, "plan", "ablation#quick", "--sbatch", "--launcher", "sbatch", folder=tmp_path, **places)
    assert f"{ablatrix.parent / 'python'} -P -m ablatrix.orchestrator.job.task out/ablation-quick/baseline-" in script
    assert call(ablatrix, "schema", folder=tmp_path) == (tmp_path / "studies" / "schema.json").read_text()
    assert not (tmp_path / "out").exists()


def test_init_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    made = init.create_workspace(tmp_path / "repo")
    assert tmp_path / "repo" / ".gitignore" in made
    (tmp_path / "notes").mkdir()
    for name in ("Makefile", ".gitignore", "thesis.tex"):
        taken = tmp_path / "notes" / name
        taken.write_text("mine")
        with pytest.raises(UserError, match=f"is not empty .*{name}"):
            init.create_workspace(tmp_path / "notes")
        assert taken.read_text() == "mine"
        assert list((tmp_path / "notes").iterdir()) == [taken]
        taken.unlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot create a workspace"):
        init.create_workspace(tmp_path / "file")
