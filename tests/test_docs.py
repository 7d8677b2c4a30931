"""Paths, links, commands, settings and experiment files of the documentation exist and work."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from typer.main import get_command, get_group

from ablatrix.orchestrator.cli import app
from ablatrix.orchestrator.status.run_state import STATES
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.command_settings import CommandKeys, Metrics
from ablatrix.orchestrator.study.designs import DESIGNS
from ablatrix.orchestrator.study.experiment import TOP_LEVEL
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.trainer.callbacks.base import EVENTS
from ablatrix.trainer.config import RunConfig, keys
from ablatrix.trainer.config.optimization import OPTIMIZERS, SCHEDULES
from ablatrix.trainer.data import warm_cache
from ablatrix.trainer.rundir.loss_csv import COLUMNS
from tests.support.pages import PAGES, code_blocks, code_spans, page_name

ROOT = code_root()
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("out", "data")}
VERBS = get_group(app).commands
OPTIONS = {option for parameter in get_command(app).params for option in parameter.opts}  # that need no verb
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SETTINGS = {key for key, _ in keys()} | {f"slurm.{name}" for name in SlurmSettings.model_fields}
SECTIONS = "|".join((*RunConfig.model_fields, "slurm"))

each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_blocks_have_a_language(page: Path) -> None:
    """`sh` for commands, which are tried, `text` for what a terminal shows."""
    languages = re.findall(r"^```([^\n]*)\n.*?^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert set(languages) <= {"sh", "text", "yaml", "python"}


@each_page
def test_paths_exist(page: Path) -> None:
    named = (
        span.partition("::")[0] for span in code_spans(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?(::\w+)?", span)
    )
    missing = [path for path in named if path.split("/")[0] in FOLDERS and not (ROOT / path).exists()]
    assert not missing


def test_names_beside_a_module_are_in_it() -> None:
    """Where docs/architecture.md says "add it to X in FILE", FILE has an X."""
    for line in re.findall(r"^\d\. .*(?:\n   .*)*", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE):
        spans = re.findall(r"`([^`]+)`", line)
        source = "".join((ROOT / span).read_text() for span in spans if span.endswith(".py"))
        missing = [span for span in spans if re.fullmatch(r"\w+", span) and not re.search(rf"\b{span}\b", source)]
        assert not source or not missing, line


@each_page
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (verb, words after it) for each `ablatrix VERB ...` and each span that begins with a verb and an option."""
    for span in code_spans(page):
        for line in re.split(r"&&|#", span):
            words = line.replace("\\|", "|").split()
            if words and words[0].endswith("ablatrix"):
                words = words[1:]
            elif len(words) < 2 or words[0] not in VERBS:
                continue
            if words and words[0].islower():
                yield words[0], words[1:]


@each_page
def test_commands_exist(page: Path) -> None:
    for verb, words in commands(page):
        if verb in OPTIONS:
            continue
        assert verb in VERBS
        known = {option for parameter in VERBS[verb].params for option in parameter.opts}
        if verb == "warm-cache":
            known |= set(warm_cache.parser()._option_string_actions)
        for word in words:
            assert not word.startswith("-") or word.strip("[]").partition("=")[0] in known, f"{verb} {word}"


@each_page
def test_make_targets_and_modules_exist(page: Path) -> None:
    text = "\n".join(code_spans(page))
    assert set(re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z][a-z-]+)", text, re.MULTILINE)) <= TARGETS
    for module in re.findall(r"python -m ([a-z][\w.]+)", text):
        assert importlib.util.find_spec(module), module


@each_page
def test_settings_exist(page: Path) -> None:
    """`trainer.schedule`, `slurm.mem: 16G`; files such as `model.pt` and modules are spelt alike."""
    for span in code_spans(page):
        name = re.match(rf"(?:{SECTIONS})\.(?!pt|conf|safetensors)[a-z]\w*", span)
        if name and not (ROOT / name[0].replace(".", "/")).with_suffix(".py").exists():
            assert name[0] in SETTINGS, span


@pytest.mark.parametrize(
    "text", [text for page in PAGES for text in code_blocks(page, "yaml") if re.search("^name:", text, re.MULTILINE)]
)
def test_experiments_can_be_planned(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((ROOT / "experiments" / "base.yaml").read_text())
    (tmp_path / "study.yaml").write_text(text)
    configs = re.findall(r"^  (\w+):", text.partition("\nconfigs:")[2], re.MULTILINE)
    for name in [f"#{config}" for config in configs] or [""]:
        loaded = load_experiment(tmp_path / f"study.yaml{name}", [])
        assert matrix.runs(loaded, lambda config: (50257, None))


FRAGMENTS = [
    text for page in PAGES for text in code_blocks(page, "yaml") if not re.search("^name:", text, re.MULTILINE)
]


@pytest.mark.parametrize("text", FRAGMENTS)
def test_fragments_can_be_planned(text: str, tmp_path: Path) -> None:
    """In a study that has what they leave out."""
    own = {"command": "", "metrics": "{csv: log.csv}", "base": "{rate: 1}", "features": "{high: {rate: 2}}"}
    built_in = {"extends": "base.yaml", "features": "{swiglu: {model.swiglu: true}}"}
    shown = re.findall(r"^(\w+):", text, re.MULTILINE)
    rest = {key: value for key, value in (own if "command" in shown else built_in).items() if key not in shown}
    lines = [f"{key}: {value}\n" for key, value in {"name": "study", **rest}.items()]
    (tmp_path / "base.yaml").write_text((ROOT / "experiments" / "base.yaml").read_text())
    (tmp_path / "study.yaml").write_text("".join(lines) + text)
    assert matrix.runs(load_experiment(tmp_path / "study.yaml", []), lambda config: (50257, None))


@pytest.mark.parametrize("text", [text for page in PAGES for text in code_blocks(page, "python")])
def test_python_blocks_compile(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("experiment-file.md", TOP_LEVEL),
        ("experiment-file.md", SlurmSettings.model_fields),
        ("experiment-file.md", tuple(DESIGNS)),
        ("any-trainer.md", CommandKeys.model_fields),
        ("any-trainer.md", Metrics.model_fields),
        ("results.md", STATES),
        ("results.md", COLUMNS),
        ("components.md", EVENTS),
        ("components.md", OPTIMIZERS),
        ("components.md", SCHEDULES),
    ],
)
def test_every_name_is_documented(page: str, names: Iterable[str]) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert not [name for name in names if not re.search(rf"[`{{]{name}\b|^{name}:", text, re.MULTILINE)]


def test_the_readme_is_short_and_every_page_is_linked_from_it() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    for page in listed.stdout.split():
        assert f"](docs/{page})" in readme, page


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "tools/mkdocs.yml").read_text(), re.MULTILINE))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")} <= listed


def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    mkdocs = shutil.which("mkdocs", path=f"{ROOT / '.venv-docs/bin'}:{os.environ['PATH']}")
    if mkdocs is None:
        pytest.skip("mkdocs is not installed; `make docs` installs it")
    command = [
        mkdocs,
        "build",
        "--strict",
        "--config-file",
        str(ROOT / "tools/mkdocs.yml"),
        "--site-dir",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Your first study" in (tmp_path / "index.html").read_text()
