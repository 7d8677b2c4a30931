"""Every study under experiments/ is planned, checked, and its smoke test run, on a small corpus with a small model."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.verbs.plan import Options, check_plan, make_plan
from ablatrix.orchestrator.verbs.submit import run_plan, smoke_plan
from tests.support.workspace import Workspace

EXPERIMENTS = code_root() / "experiments"
CELLS = {
    "ablation": ["baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on"],
    "quickstart": ["baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on"],
    "adaptive": ["baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on"],
    "hyperparameters": ["baseline", "higher_lr", "larger_batch", "low_weight_decay"],
    "factorial": [
        *("baseline", "swiglu", "rmsnorm", "rope"),
        *("swiglu+rmsnorm", "swiglu+rope", "rmsnorm+rope", "swiglu+rmsnorm+rope"),
    ],
    "screening": [
        *("baseline", "swiglu+rmsnorm", "swiglu+rope", "swiglu+warmup", "swiglu+cosine"),
        *("rmsnorm+rope", "rmsnorm+warmup", "rmsnorm+cosine", "rope+warmup", "rope+cosine", "warmup+cosine"),
        *("swiglu+rmsnorm+rope+warmup", "swiglu+rmsnorm+rope+cosine", "swiglu+rmsnorm+warmup+cosine"),
        *("swiglu+rope+warmup+cosine", "rmsnorm+rope+warmup+cosine", "aa"),
    ],
    "plackett_burman": [
        *("baseline", "warmup+qk_norm+no_bias", "swiglu+rmsnorm+rope+no_bias", "swiglu+rmsnorm+qk_norm+weight_decay"),
        *("swiglu+rope+warmup+cosine", "swiglu+cosine+no_bias+weight_decay", "rmsnorm+rope+warmup+weight_decay"),
        *("rope+cosine+qk_norm+weight_decay", "swiglu+rmsnorm+warmup+cosine+qk_norm"),
        *("rmsnorm+rope+cosine+qk_norm+no_bias", "rmsnorm+warmup+cosine+no_bias+weight_decay"),
        "swiglu+rope+warmup+qk_norm+no_bias+weight_decay",
    ],
    "alibi_vs_absolute": [
        "baseline",
        *(f"positions.{name}" for name in ("alibi", "alibi_trainable", "rope", "sinusoidal", "none")),
    ],
    "tuned_cosine": [
        f"{cell}@{rate}"
        for cell in ("baseline", "cosine")
        for rate in (
            *(0.001, 0.0012, 0.0014, 0.0017, 0.002, 0.0024, 0.0028, 0.0034),
            *(0.004, 0.0048, 0.0057, 0.0067, 0.008),
        )
    ],
    "infinite_schedule": ["baseline", "schedule.infinite", "schedule.wsd", "schedule.constant"],
    "big": ["baseline", "modern"],
    "scale": [f"{c}@n_embd{width}" for width in (16, 32, 64, 128) for c in ("baseline", "rope", "cosine")],
}
# What is smoke-tested: the cells of which no other test trains the like. The preflight trains a small model of each.
SMOKED = {
    "hyperparameters": CELLS["hyperparameters"][1:],
    "factorial": CELLS["factorial"][-1:],
    "plackett_burman": CELLS["plackett_burman"][-1:],
    "alibi_vs_absolute": [cell for cell in CELLS["alibi_vs_absolute"][1:] if cell != "positions.rope"],
    "infinite_schedule": CELLS["infinite_schedule"][:3],
    "big": ["modern"],  # by two processes
}


def options(name: str, workspace: Workspace) -> Options:
    """The study, small: one seed, one layer, the corpus of the tests."""
    small: dict[str, object] = {
        "data.file_path": workspace.corpus,
        "data.tokenizer": "sample",
        "data.test_size": 6,
        "data.block_size": 16,
        "model.model_type": "gpt-nano",
        "model.n_layer": 1,
        "trainer.eval_tokens": 500,
        "system.cache_dir": workspace.cache,
        "seeds": 1,
        "output": workspace.folder / "out",
    }
    if name == "alibi_vs_absolute":
        small["trainer.eval_blocks"] = [16, 32]
    if name == "big":
        small |= {"trainer.batch_size": 8, "trainer.dtype": "float32", "slurm.nodes": 1, "slurm.gpus_per_node": 2}
    sets = [f"{key}={value}" for key, value in small.items()]
    return Options(EXPERIMENTS / f"{name}.yaml", "local", sets=sets, smoke=5, only=SMOKED[name])


def test_all_studies_are_known_here() -> None:
    assert sorted({path.stem for path in EXPERIMENTS.glob("*.yaml")} - {"base"}) == sorted(CELLS)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_a_study_plans_its_cells_as_it_stands(name: str, workspace: Workspace) -> None:
    path = EXPERIMENTS / f"{name}.yaml"
    plan = make_plan(Options(path, "local", sets=["data.tokenizer=sample", f"system.cache_dir={workspace.cache}"]))
    assert list(dict.fromkeys(run.cell for run in plan.runs)) == CELLS[name]
    if not plan.loaded.experiment.tune:  # whose grid has tuning seeds besides
        assert len(plan.runs) % len(CELLS[name]) == 0
    assert plan.loaded.experiment.name == name


@pytest.mark.parametrize("name", sorted(SMOKED))
def test_a_study_passes_the_preflight_and_its_smoke_test(
    name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    monkeypatch.setattr(sys, "executable", workspace.python)  # forked trainers
    plan = make_plan(options(name, workspace))
    check_plan(plan)
    states = run_plan(smoke_plan(plan), Console())
    ended = {state.run.cell: state.state for state in states if state.run.cell in SMOKED[name]}
    assert ended == dict.fromkeys(SMOKED[name], "done")
    assert {Path(state.run.folder).parent.name for state in states} == {"smoke"}
