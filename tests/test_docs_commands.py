"""Commands in shell blocks of the documentation: parsed by the program itself, and run where that is cheap."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.main import get_group

from ablatrix.orchestrator.cli import app
from ablatrix.trainer.config.flags import from_flags
from ablatrix.trainer.data import warm_cache
from tests.support.pages import PAGES, ROOT, code_blocks, code_spans, page_name
from tests.support.studies import Plan, write_study
from tests.support.workspace import Workspace

VERBS = get_group(app).commands
PARSED_ONLY = {  # the beginning of a command -> why it is not run here
    "ablatrix warm-cache --tokenizer gpt2": "downloads from the hub",
    "ablatrix init --site": "asks a cluster: tests/slurm/test_init_site.py",
    "ablatrix pack": "needs runs with their code: tests/orchestrator/verbs/test_pack.py",
    "ablatrix replay": "trains: tests/orchestrator/verbs/test_pack.py",
    "ablatrix export": "needs weights: tests/trainer/test_export.py",
    "ablatrix generate": "needs weights: tests/orchestrator/verbs/test_generate.py",
    "python -m ablatrix.trainer": "trains: tests/trainer/test_config_files.py",
    "python -m pytest": "is what runs this",
    "export SLURM_CONF": "selects a cluster",
    "tests/slurm/cluster": "starts a cluster, as CI does",
    "chromium": "is not everywhere",
    "python -c": "changes the picture that chromium writes",
}
OTHER_PROGRAMS = {"cd", "export", "jq", "chromium"}
OPTIONS_OF_OTHERS = {
    *("--install-completion", "--purge"),  # of typer, of tests/slurm/cluster
    *("--no-deps", "--require-hashes", "--torch-backend", "--system-site-packages"),  # of pip, uv, venv
    *("--export", "--test-only"),  # of sbatch
    *("--b", "--key", "--lr", "--x", "--no-x"),  # of training scripts
    *("--logdir", "--port", "--nproc-per-node", "--standalone", "--nv"),  # of tensorboard, torchrun, apptainer
    *("--headless", "--hide-scrollbars", "--screenshot", "--window-size"),  # of chromium
}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in the shell blocks of a page."""
    for block in code_blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


SHELL = [(page, words) for page in PAGES for words in commands(page)]


def parse(words: list[str]) -> None:
    """Raise what the program itself raises about its words; nothing is done."""
    if words[:2] == ["ablatrix", "warm-cache"]:
        warm_cache.parser().parse_args(words[2:])
    elif words[0] == "ablatrix":
        VERBS[words[1]].make_context(words[1], split_redirection(words)[0][2:])
    elif words[:3] == ["python", "-m", "ablatrix.trainer"]:
        from_flags(words[3:])
    elif words[0].startswith("tests/"):
        assert re.search(rf"^  (\w+ \| )*{words[1]}( \| \w+)*\)", (ROOT / words[0]).read_text(), re.MULTILINE)
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "words", "exec")
    else:
        assert words[0] in OTHER_PROGRAMS or words[:3] == ["python", "-m", "pytest"], words


def split_redirection(words: list[str]) -> tuple[list[str], str | None]:
    """Return the words before `> FILE`, and FILE."""
    return (words[:-2], words[-1]) if ">" in words else (words, None)


def is_run(words: list[str]) -> bool:
    return not " ".join(words).startswith(tuple(PARSED_ONLY))


@pytest.mark.parametrize("words", [words for _, words in SHELL], ids=" ".join)
def test_commands_are_understood(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("data: {file_path: data/x.jsonl}\n")
    parse(words)


def test_a_wrong_option_is_not_understood() -> None:
    with pytest.raises(Exception, match="--wiat"):
        parse(["ablatrix", "submit", "ablation.yaml", "--wiat"])


def test_what_is_only_parsed_is_in_the_documentation() -> None:
    lines = [" ".join(words) for _, words in SHELL]
    assert not [start for start in PARSED_ONLY if not any(line.startswith(start) for line in lines)]


@pytest.mark.parametrize("page", {page: None for page, words in SHELL if is_run(words)}, ids=page_name)
def test_commands_run(page: Path, workspace: Workspace) -> None:
    """In a workspace with a finished study; `submit` ends before it would queue anything."""
    workspace.environment["ABLATRIX_CACHE"] = str(workspace.cache)
    workspace.run("init", ".")
    workspace.run("warm-cache", "--tokenizer", "sample")
    finished = Plan(name="ablation", seeds=(1, 2), features={"swiglu": {"model.swiglu": True}})
    write_study(workspace.folder / "out/ablation", finished)
    for words in filter(is_run, commands(page)):
        if words[0] == "cd":
            workspace.folder /= words[1]
            write_study(workspace.folder / "out/ablation", finished)
        elif words[0] == "ablatrix":
            words, target = split_redirection(words)
            shown = workspace.run(*words[1:], *["--dry-run"] * (words[1] == "submit")).stdout
            if target:
                (workspace.folder / target).write_text(shown)
        elif shutil.which(words[0]):
            subprocess.run(words, cwd=workspace.folder, check=True)


def test_the_readmes_own_script_is_judged(workspace: Workspace) -> None:
    """As written there, in a study as written there, of fewer runs; and without a study."""
    (script,) = (text for text in code_blocks(ROOT / "README.md", "python") if "ablatrix_run" in text)
    (study,) = (text for text in code_blocks(ROOT / "README.md", "yaml") if "in-process" in text)
    (workspace.folder / "train.py").write_text(script)
    (workspace.folder / "tiny.yaml").write_text(study)
    assert script.count("\n") <= 14 and study.count("\n") <= 12
    subprocess.run([sys.executable, "train.py"], cwd=workspace.folder, env=workspace.env(), check=True)
    only = [word for cell in ("baseline", "slow") for word in ("--only", cell)]
    workspace.run("submit", "tiny.yaml", "--launcher", "local", "--wait", *only, "--set", "seeds=2")
    runs = json.loads(workspace.run("status", "tiny", "--json").stdout)["runs"]
    final = {run["cell"]: run["val_loss"] for run in runs}
    assert final["slow"] > final["baseline"]


@pytest.mark.slow
def test_the_python_api_is_called_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the report, which takes many seconds: tests/orchestrator/report/test_report_output.py."""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "out/quickstart", Plan(name="quickstart", features={"swiglu": {"model.swiglu": True}}))
    (block,) = code_blocks(ROOT / "docs/python.md", "python")
    names: dict[str, Any] = {}
    shown, line, _ = block.partition("study.report(pdf=True)")
    exec(shown, names)
    assert line and set(names["study"].verdicts().index) >= {"baseline", "swiglu"}


def test_the_component_is_a_model_as_shown() -> None:
    (block,) = code_blocks(ROOT / "docs/components.md", "python")
    names: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    exec(block, names)
    assert names["MyMLP"](SimpleNamespace(n_embd=4))(torch.ones(2, 3, 4)).shape == (2, 3, 4)


def known_options() -> set[str]:
    """Return the options of every verb, of warm-cache, of the trainer's program, and of the benchmarks."""
    verbs = {option for verb in VERBS.values() for parameter in verb.params for option in parameter.opts}
    sources = chain(ROOT.glob("benchmarks/*.py"), [ROOT / "tests/conftest.py", ROOT / "tests/support/evidence.py"])
    written = {option for path in sources for option in re.findall(r'"(--[a-z-]+)"', path.read_text())}
    return verbs | written | set(warm_cache.parser()._option_string_actions) | {"--config", "--help"}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_options_exist(page: Path) -> None:
    """Those that stand in the text, of whichever program: `--watch`, `submit --retry`."""
    options = {option for span in code_spans(page) for option in re.findall(r"(?<!\S)--[a-z-]+(?![\w.-])", span)}
    assert not options - known_options() - OPTIONS_OF_OTHERS
