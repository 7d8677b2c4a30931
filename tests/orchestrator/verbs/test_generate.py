"""`generate`: text of several runs from one prompt, repeatable, on a terminal and in a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from ablatrix.models.gpt import GPT
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.terminal.printing import Terminal
from ablatrix.orchestrator.verbs.generate import generate, print_texts
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.text_request import Request
from ablatrix.trainer.weights import read_config
from tests.support.plans import expand

FEATURES = "features:\n  swiglu: {model.swiglu: true}\n  rope: {model.rope: true}\nseeds: 2\n"


@pytest.fixture
def study(tmp_path: Path, offline_cache: Path) -> Study:
    """Runs with untrained models, as if they had finished."""
    runs = expand(tmp_path, FEATURES, ("data.tokenizer=sample", f"system.cache_dir={offline_cache}"))
    study = study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, runs)
    for run in study.runs:
        config = read_config(run.folder)
        torch.save(GPT(config.model, seed=run.seed).state_dict(), run.folder / run_files.MODEL)
    return study


def test_cells_continue_the_same_prompt(study: Study) -> None:
    def texts(seed: int = 0, prompt: str = "def f(x):") -> dict[str, str]:
        name = study.find("baseline-seed2").folder
        return generate(str(name), ["rope", "swiglu"], None, Path("out"), Request(prompt, tokens=8, seed=seed))

    first = texts()
    assert [name.rpartition("-")[0] for name in first] == ["baseline-seed2", "rope-seed2", "swiglu-seed2"]
    assert all(name.endswith("after step 1000") for name in first)
    assert all(text.startswith("def f(x):") and len(text) > 9 for text in first.values())
    assert len(set(first.values())) == 3
    assert texts() == first and texts(seed=1) != first and texts(prompt="import") != first


def test_what_cannot_be_generated_is_a_sentence(study: Study) -> None:
    baseline = str(study.find("baseline-seed1").folder)
    with pytest.raises(UserError, match="no such run"):
        generate(baseline, ["geglu"], None, Path("out"), Request("a"))
    with pytest.raises(UserError, match="must be positive"):
        generate(baseline, [], None, Path("out"), Request("a", temperature=0.0))
    other = study.find("swiglu-seed1").folder / run_files.MODEL
    (study.find("baseline-seed1").folder / run_files.MODEL).write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="cannot build the model of"):
        generate(baseline, [], None, Path("out"), Request("a"))


def test_texts_stand_side_by_side_where_there_is_room() -> None:
    texts = {"baseline after step 9": "one\x1b[2J", "rope after step 9": "two"}

    def shown(terminal: bool, width: int) -> list[str]:
        console = Terminal(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
        print_texts(texts, console)
        return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]

    assert any("one" in line and "two" in line for line in shown(True, 80))
    for lines in (shown(True, 40), shown(False, 10_000)):
        assert lines == ["--- baseline after step 9", "one\\x1b[2J", "", "--- rope after step 9", "two"]
