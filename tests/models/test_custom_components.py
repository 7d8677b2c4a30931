"""A user's own component, from the config to the trained model, and each way in which one cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.models.config import GPTConfig, count_parameters
from ablatrix.models.custom import ComponentError
from ablatrix.models.gpt import GPT, measure
from ablatrix.trainer.config import load
from ablatrix.trainer.rundir import run_files
from tests.support.workspace import Workspace

PARTS = """
import torch
from torch import nn

class MyMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(3 * config.n_embd, config.n_embd)
        self.gain = nn.Parameter(torch.empty(()))
    def initialize(self, generator):
        self.gain.fill_(0.5)
    def forward(self, x):
        return self.gain * self.c_proj(torch.tanh(self.c_fc(x)))

class MyNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_embd))
    def forward(self, x):
        return x / (1e-5 + x.abs().mean(-1, keepdim=True)) * self.weight

class MyPositions(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("ramp", torch.linspace(0, 1, config.block_size)[:, None])
    def forward(self, x):
        return x + 0.02 * self.ramp[: x.shape[1]]

class Narrow(MyMLP):
    def forward(self, x):
        return self.c_fc(x)

class Pair(MyMLP):
    def forward(self, x):
        return x, x

class Breaks(MyMLP):
    def forward(self, x):
        return x @ x

class Future(MyMLP):
    def forward(self, x):
        return super().forward(x + x.mean(1, keepdim=True))

class Batch(MyMLP):
    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.n_embd)
        self.dropout = nn.Dropout(0.5)
    def forward(self, x):
        return self.dropout(super().forward(self.norm(x.mT).mT))

class Past(MyMLP):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x.cumsum(1)), 0.5, self.training)

class Measures(MyMLP):
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.ones(3).sum().item()

class Wants(nn.Module):
    def __init__(self, width, depth):
        super().__init__()

def function(config):
    return lambda x: x
"""
OWN = {"feedforward": "own_parts.mlp:MyMLP", "norm": "own_parts.mlp:MyNorm", "positions": "own_parts.mlp:MyPositions"}


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in the working folder, which no path names."""
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts/mlp.py").write_text(PARTS)
    (tmp_path / "own_parts/broken.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "own_parts"]:
        monkeypatch.delitem(sys.modules, name)


def tiny(**changes: Any) -> GPTConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 3, "n_embd": 12, "vocab_size": 31, "block_size": 9}
    return GPTConfig.model_validate({**sizes, **changes}).resolved(31, 9)


def test_own_parts_make_a_model() -> None:
    model = GPT(tiny(**OWN), seed=1).eval()
    tokens = torch.arange(9)[None]
    logits, loss = model(tokens, tokens)
    assert loss is not None and bool(logits.isfinite().all())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    again = GPT.from_state(model.config, model.state_dict()).eval()
    assert torch.equal(again(tokens)[0], logits)
    with pytest.raises(ValueError, match=r"block_size 9, and own_parts\.mlp:MyPositions positions end"):
        model(torch.zeros(1, 10, dtype=torch.long))


def test_own_weights_start_by_the_rule_and_by_initialize() -> None:
    weights = dict(GPT(tiny(**OWN), seed=1).named_parameters())
    again = dict(GPT(tiny(**OWN), seed=1).named_parameters())
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    mlp = "transformer.h.0.mlp"
    assert weights[f"{mlp}.gain"].item() == 0.5
    assert weights[f"{mlp}.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert weights[f"{mlp}.c_proj.weight"].std().item() == pytest.approx(0.01, rel=0.2)
    assert bool((weights[f"{mlp}.c_fc.bias"] == 0).all() and (weights["transformer.h.1.ln_1.weight"] == 1).all())


def test_counts_are_measured() -> None:
    config, standard = tiny(feedforward=OWN["feedforward"]), tiny()
    own = (12 * 36 + 36) + (36 * 12 + 12) + 1
    usual = (12 * 48 + 48) + (48 * 12 + 12)
    expected = count_parameters(standard)
    assert expected is not None
    assert GPT(config).n_parameters == expected + 2 * (own - usual)
    assert GPT(config).flops_per_token - GPT(standard).flops_per_token == 6 * 2 * (own - usual)


def test_counts_of_a_part_that_needs_values() -> None:
    config = tiny(feedforward="own_parts.mlp:Measures")
    assert measure(config) == (GPT(config).n_parameters, GPT(config).flops_per_token)
    assert measure(config) == measure(tiny(feedforward=OWN["feedforward"]))


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        (
            "no_such_package.mlp:MyMLP",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'; put",
        ),
        ("own_parts.broken:MyMLP", "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"),
        ("own_parts.mlp:MyMPL", r"module own_parts.mlp \(.*mlp.py\) has no MyMPL"),
        (
            "models.mlp:MyMLP",
            "Ablatrix has a package of the name models; rename yours, .* and write my_models.mlp:MyMLP",
        ),
        ("trainer:MyMLP", "Ablatrix has a package of the name trainer; rename yours, .* and write my_trainer:MyMLP"),
        ("random:MyMLP", "Python has a module of the name random; rename yours, .* and write my_random:MyMLP"),
        ("own_parts.mlp:Wants", "cannot be built from the model's config: TypeError: "),
        ("own_parts.mlp:function", "is not a torch.nn.Module"),
        ("own_parts.mlp:PARTS", r"module own_parts.mlp \(.*\) has no PARTS"),
        ("own_parts.mlp:Narrow", r"must return its input's shape, \(2, 3, 12\), but returns \(2, 3, 36\)"),
        ("own_parts.mlp:Pair", r"must return its input's shape, \(2, 3, 12\), but returns tuple"),
        ("own_parts.mlp:Breaks", r"fails on an input of shape \(2, 3, 12\): RuntimeError: "),
        ("own_parts.mlp:Future", "lets positions see later ones: "),
        ("own_parts.mlp:Batch", "lets positions see later ones: "),
    ],
)
def test_what_cannot_be_used_is_one_sentence(reference: str, complaint: str) -> None:
    with pytest.raises(ComponentError, match=f"^model.feedforward: {reference}.*{complaint}") as caught:
        GPT(tiny(feedforward=reference))
    assert "\n" not in str(caught.value)


def test_a_part_of_ablatrix_itself_may_be_referred_to() -> None:
    with pytest.raises(ComponentError, match="cannot be built from the model's config"):
        GPT(tiny(feedforward="ablatrix.models.norms:RMSNorm"))


def test_trying_a_part_leaves_it_and_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    model = GPT(tiny(feedforward="own_parts.mlp:Past"), seed=None)  # what came before may be seen
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.is_meta for p in model.parameters())


def test_the_working_folder_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    GPT(tiny(feedforward=OWN["feedforward"]))
    assert sys.path[-1] == str(tmp_path)


def test_a_study_with_own_parts(workspace: Workspace) -> None:
    """`plan` knows their names only; `submit` tries them before it queues, and says in one line what is wrong."""
    study = workspace.write_study(iters=4)
    text = study.read_text().split("features:")[0]
    study.write_text(text + "features: {mine: {model.feedforward: 'own_parts.mlp:MyMLP'}}\n")
    assert "unknown" in workspace.run("plan", study).stdout
    workspace.run("submit", study, "--launcher", "local", "--only", "mine")
    folder = workspace.run_folder("mine")
    summary = json.loads((folder / run_files.SUMMARY).read_text())
    config = load(folder / run_files.CONFIG).model
    assert summary["parameters"] == GPT(config, seed=None).n_parameters
    assert summary["flops_per_token"] == GPT(config, seed=None).flops_per_token

    study.write_text(text + "features: {mine: {model.feedforward: 'own_parts.mlp:Narrow'}}\n")
    refused = workspace.run("submit", study, "--launcher", "local", code=2)
    shown = " ".join((refused.stdout + refused.stderr).split())
    assert "model.feedforward: own_parts.mlp:Narrow must return its input's shape, (2, 3, 16)" in shown
