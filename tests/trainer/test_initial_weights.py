"""`model.init_from`: GPT-2 weights that transformers has written, exported folders and runs, in the models of cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ablatrix.models.gpt import GPT
from ablatrix.trainer import initial_weights
from ablatrix.trainer.config import RunConfig, validate
from ablatrix.trainer.data import fingerprints, warm_weights, weights_source
from ablatrix.trainer.data.manifest import read_manifest
from ablatrix.trainer.export import export
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.errors import ConfigError, OfflineCacheError, UserError
from tests.support.hub_server import COMMIT, HubServer

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random GPT-2, as transformers writes it."""
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(str(folder))
    return folder


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def configured(init_from: object, **model: Any) -> RunConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "block_size": 16}
    tree = {"data": {"file_path": "x", "block_size": 8}, "model": {**sizes, "init_from": str(init_from), **model}}
    return validate(tree).resolved(50)


def loaded(config: RunConfig) -> GPT:
    model = GPT(config.model, seed=7)
    initial_weights.load_initial(model, config)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": True}, {"block_size": 8}])
def test_gpt2_of_transformers_has_the_same_logits_here(gpt2: Path, settings: dict[str, Any]) -> None:
    idx = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(1))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(str(gpt2), local_files_only=True).eval()
    torch.testing.assert_close(loaded(configured(gpt2, **settings))(idx)[0], theirs(idx).logits, rtol=0, atol=1e-4)


def test_a_component_that_the_file_lacks_keeps_its_initial_weights(gpt2: Path) -> None:
    config = configured(gpt2, swiglu=True, rope=True)
    model, fresh, whole = loaded(config), GPT(config.model, seed=7), loaded(configured(gpt2))
    source = weights_source.find_source(str(gpt2), Path())
    found = initial_weights.match(model, source, initial_weights.read_source(source))
    layers = {f"transformer.h.{i}.mlp.{name}.weight" for i in (0, 1) for name in ("c_fc", "c_proj")}
    assert set(found.new) == layers | {f"transformer.h.{i}.mlp.c_fc.bias" for i in (0, 1)}
    state, drawn, given = model.state_dict(), fresh.state_dict(), whole.state_dict()
    for name, value in state.items():
        assert torch.equal(value, drawn[name] if name in found.new else given[name]), name
    text = initial_weights.describe(found, source)
    assert "drawn from the seed: transformer.h.*.mlp.c_fc.weight" in text
    assert "transformer.wpe.weight" in text.partition("not used")[2]


def test_a_head_that_a_tied_model_cannot_take_is_named(tmp_path: Path) -> None:
    untied = GPT(configured("x").model, seed=1)
    source = weights_source.Source("untied", tmp_path, untied.config, huggingface=False)
    tied = GPT(configured("x", tie_embeddings=True).model, seed=2)
    found = initial_weights.match(tied, source, untied.state_dict())
    assert initial_weights.describe(found, source).endswith("; not used: lm_head.weight")
    assert initial_weights.match(tied, dataclasses.replace(source, model=tied.config), tied.state_dict()).unused == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"n_layer": 3}, r"model\.n_layer: 3, but the weights of model\.init_from: .* have 2; set it to 2"),
        ({"n_head": 4}, r"model\.n_head: 4"),
        ({"n_embd": 32}, r"model\.n_embd: 32"),
        ({"vocab_size": 64}, r"model\.vocab_size: 64.* choose their data\.tokenizer"),
        ({"block_size": 32}, r"model\.block_size: 32 exceeds the 16 positions"),
    ],
)
def test_sizes_that_differ_name_the_setting(gpt2: Path, settings: dict[str, Any], problem: str) -> None:
    config = configured(gpt2, **settings)
    with pytest.raises(ConfigError, match=problem):
        loaded(config)
    (line,) = initial_weights.find_problems(config)  # from the shapes alone
    with pytest.raises(ConfigError, match=problem):
        raise ConfigError([line])
    assert initial_weights.find_problems(configured(gpt2)) == []


def test_a_longer_context_is_possible_without_learned_positions(gpt2: Path) -> None:
    assert initial_weights.find_problems(configured(gpt2, block_size=64, rope=True)) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot read "),
        (lambda folder: (folder / "config.json").unlink(), "is missing or not JSON"),
        (lambda folder: change_config(folder, n_embd=None), "its settings are invalid"),
        (lambda folder: change_config(folder, model_type=[]), r"model_type \[\] is neither gpt2 nor llama"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor model.pt"),
        (
            lambda folder: [path.unlink() for path in folder.iterdir()],
            "give an exported folder",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_a_sentence(
    gpt2: Path, tmp_path: Path, damage: Callable[[Path], object], problem: str
) -> None:
    for path in gpt2.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path)
    with pytest.raises(UserError, match=problem):
        loaded(configured(tmp_path))


def test_runs_start_from_runs_and_from_what_was_exported(train: Train, tmp_path: Path) -> None:
    first = train("first", trainer__max_iters=3)
    export(first, tmp_path / "exported")
    state = torch.load(first / run_files.MODEL, weights_only=True)
    for folder in (first, tmp_path / "exported"):
        name = f"from-{folder.name}"
        run = train(name, model__init_from=folder, trainer__max_iters=1, trainer__learning_rate=1e-30)
        now = torch.load(run / run_files.MODEL, weights_only=True)
        for key, value in state.items():
            torch.testing.assert_close(now[key], value, rtol=0, atol=1e-6)
        summary = run_files.read_json(run / run_files.SUMMARY) or {}
        source = weights_source.find_source(str(folder), Path())
        assert summary[recorded_inputs.WEIGHTS] == fingerprints.of_weights(source)


def test_a_run_does_not_go_on_from_other_weights(train: Train, gpt2: Path) -> None:
    first = train("first", trainer__max_iters=3)
    second = train("second", model__init_from=first, trainer__max_iters=2)
    other = train("other", trainer__max_iters=3, system__seed=9)
    (first / run_files.MODEL).write_bytes((other / run_files.MODEL).read_bytes())
    (second / run_files.SUMMARY).unlink()
    with pytest.raises(UserError, match=r"the content of model\.init_from \(.*first\) has changed since step 2"):
        train("second", model__init_from=first, trainer__max_iters=2)


def test_weights_that_cannot_be_used_leave_nothing_behind(train: Train, gpt2: Path, tmp_path: Path) -> None:
    for name, source in (("missing", tmp_path / "no"), ("other", gpt2)):
        with pytest.raises(ConfigError, match=r"model\.init_from"):
            train(name, model__init_from=source)
        assert not (tmp_path / name).exists()


def test_a_resumed_run_does_not_need_its_source(train: Train) -> None:
    first = train("first", trainer__max_iters=1)
    second = train("second", model__init_from=first, trainer__max_iters=2)
    (first / run_files.MODEL).unlink()
    (second / run_files.SUMMARY).unlink()
    train("second", model__init_from=first, trainer__max_iters=2)
    assert (second / run_files.SUMMARY).exists()


def test_the_source_is_part_of_a_run_and_its_absence_is_not(gpt2: Path) -> None:
    config = configured(gpt2)
    without = config.model_copy(update={"model": config.model.model_copy(update={"init_from": None})})
    assert config.fingerprint() != without.fingerprint()
    assert config.fingerprint_until(1) != without.fingerprint_until(1)
    assert "init_from" in without.identity()["model"]
    assert configured(f"{gpt2}/../gpt2").fingerprint() == config.fingerprint()


def test_weights_of_the_hub_go_into_the_cache(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in gpt2.iterdir()}
    bert = {"config.json": json.dumps({"model_type": "bert"}).encode(), "model.safetensors": b"x"}
    repositories = {"openai-community/gpt2": files, "owner/bert": bert, "owner/old": {"pytorch_model.bin": b""}}
    cache = tmp_path / "cache"
    with pytest.raises(OfflineCacheError, match="warm-cache --weights gpt2"):
        weights_source.find_source("gpt2", cache)
    with HubServer(repositories, large=("model.safetensors",)) as hub:
        import huggingface_hub.constants

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(UserError, match="model_type 'bert' is neither gpt2 nor llama"):
            warm_weights.warm_weights("owner/bert", cache)
        assert not [path for _, path in hub.requests if path.endswith("model.safetensors")]
        with pytest.raises(UserError, match=r"no config\.json"):
            warm_weights.warm_weights("owner/old", cache)
        warm_weights.warm_weights("openai-community/gpt2", cache)
    warm_weights.warm_weights("gpt2", cache)  # there already: without a hub
    assert read_manifest(cache).models["gpt2"].commit == COMMIT
    source = weights_source.find_source("gpt2", cache)
    assert source.path.read_bytes() == files["model.safetensors"]
    source.path.write_bytes(b"short")
    with pytest.raises(OfflineCacheError, match="missing or incomplete"):
        weights_source.find_source("gpt2", cache)
