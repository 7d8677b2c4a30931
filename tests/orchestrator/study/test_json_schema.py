"""The JSON schema for editors: it takes what the loader takes, and refuses misspelt keys."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import field_checks, json_schema, yaml_tree
from ablatrix.orchestrator.verbs import init
from ablatrix.trainer.config import keys
from tests.support.pages import PAGES, code_blocks
from tests.support.workspace import Workspace

EXPERIMENTS = code_root() / "experiments"


@pytest.fixture(scope="module")
def accepts() -> Callable[[Any], bool]:
    """accepts(document): what an editor would say of it."""
    fastjsonschema = pytest.importorskip("fastjsonschema")
    validate = fastjsonschema.compile(json.loads(json_schema.text()), use_default=False)

    def check(document: Any) -> bool:
        try:
            validate(document)
        except fastjsonschema.JsonSchemaException:
            return False
        return True

    return check


def parsed(text: str, folder: Path) -> dict[str, Any]:
    path = folder / "document.yaml"
    path.write_text(text)
    return yaml_tree.load(path).data


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_accepted(accepts: Callable[[Any], bool], path: Path) -> None:
    assert accepts(yaml_tree.load(path).data)


def test_the_schema_beside_the_examples_is_that_of_the_code() -> None:
    assert (EXPERIMENTS / "schema.json").read_text() == json_schema.text(), "settings have changed: call `make schema`"
    for path in EXPERIMENTS.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path


def test_a_new_workspace_is_accepted(accepts: Callable[[Any], bool], tmp_path: Path) -> None:
    workspace = [text for name, text in init.workspace_files().items() if name.endswith(".yaml")]
    assert len(workspace) == 2
    for text in workspace:
        assert accepts(parsed(text, tmp_path)), text


@pytest.mark.parametrize("text", [text for page in PAGES for text in code_blocks(page, "yaml")])
def test_the_documentation_is_accepted(accepts: Callable[[Any], bool], text: str, tmp_path: Path) -> None:
    assert accepts(parsed(text, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "base: {model.rope: true, model: {swiglu: true}, trainer: {betas: [0.9, 0.95]}}",
        'base: {trainer.max_iters: "${iters}", model.rope: "${env:ROPE,true}", trainer.betas: ["${a}", 0.9]}',
        'seeds: ["${n}", 2]',
        'seeds: "${n}"',
        "seeds: 1-5",
        "seeds: '1, 2, 3'",
        "seeds: [1-3, 7]",
        "x-common: &c {learning_rate: 1e-3}\nfeatures: {a: {trainer: {<<: *c, warmup_steps: 5}}}",
        "configs: {a: {x-note: 1, base: {model.n_layer: 1}}}",
        "name: 007\nslurm: {account: 12345}\nbase: {data: {text_key: 1, file_path: 2024}}\ncells:\n",
        "seeds: 3",
        "extends: [base.yaml, 'sizes.yaml#large']",
        "features: {lr: {levels: {low: {trainer.learning_rate: 1e-4}, high: {trainer: {learning_rate: 1e-2}}}}}",
        "design: [baseline, {factorial: 2}]",
        "design: [baseline, {factorial: '${n}'}]",
        "configs: {small: {base: {model.n_layer: 1}}, large: {extends: small, seeds: 1}, empty: }",
        "slurm: {cpus_per_task: '${cores}', extra: {nodelist: node1}, setup: [module load cuda]}",
        "vars: {anything: {at: [all]}}",
        "launcher: ${env:LAUNCHER,auto}",
        "base: {model.model_type: null, model.n_layer: 2}",
        "experiment_info: {name: n, date: 2026-01-31, description: d, hypothesis: h}",
        "base: {callbacks: {custom: 'mine:A', jsonl: true}, trainer: {sample_prompt: [a, b], save_best: true}}",
        "base: {callbacks.custom: ['mine:A'], trainer.sample_prompt: a}",
        "name: x\ncommand: python t.py {flags}\nflags: --b c\nbase: {a: {b: 1}}\nmetrics: {csv: a, columns: {loss: x}}",
        "name: x\ncommand: [sh, t.sh, 3]\nenv: {A: 4}\nmetrics: {regex: '(?P<iter>.)', steps: 3}\nbase: {z: 1}",
    ],
)
def test_what_the_loader_takes_is_accepted(accepts: Callable[[Any], bool], text: str, tmp_path: Path) -> None:
    assert accepts(parsed(text, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "desing: [baseline]",
        "design: [baselin]",
        "design: [{factorial: 0}]",
        "base: {model.rop: true}",
        "base: {model: {rop: true}}",
        "base: {modle: {rope: true}}",
        "base: {trainer.max_iters: many}",
        "base: {trainer.max_iters: 0}",
        "base: {trainer.dtype: float61}",
        "base: {trainer.device: gpu}",
        "base: {trainer.betas: [0.9]}",
        "base: {model.rope: 'yes'}",
        "base: {system.seed: 3}",
        "experiment_info: {hypotesis: x}",
        "base: {info.name: x}",
        "base: {callbacks: {jsonlines: true}}",
        "features: {rope: {}}",
        "features: {rope: {model.rop: true}}",
        "features: {'a b': {model.rope: true}}",
        "features: {lr: {levels: {low: {trainer.learnin_rate: 1}}}}",
        "slurm: {tim: '1'}",
        "slurm: {cpus_per_task: 0}",
        "configs: {a: {bas: {}}}",
        "configs: {a: {configs: {}}}",
        "seeds: [-1]",
        "seeds: many",
        "y-common: 1",
        "launcher: pbs",
        "name: x\ncommand: a\nmetrics: {cvs: a}",
        "name: x\ncommand: a\nflags: --bc\nmetrics: {csv: a}",
    ],
)
def test_what_the_loader_refuses_is_refused(accepts: Callable[[Any], bool], text: str, tmp_path: Path) -> None:
    assert not accepts(parsed(text, tmp_path))


def test_every_setting_is_offered_with_its_description() -> None:
    tree = json_schema.build()
    offered = tree["$defs"]["settings"]["properties"]
    for key, field in keys():
        assert (key in offered) == (key not in field_checks.FIXED), key
        if key in offered:
            assert tree["$defs"][key]["description"] == field.description, key


def test_a_schema_of_another_version_is_noticed(workspace: Workspace) -> None:
    study = workspace.write_study()
    study.write_text(f"# yaml-language-server: $schema=schema.json\n{study.read_text()}")
    assert json_schema.outdated(study) is None, "a schema that is not there is no fault"
    workspace.run("schema", "--output", workspace.folder / "schema.json")
    assert workspace.run("schema").stdout == (workspace.folder / "schema.json").read_text() == json_schema.text()
    assert json_schema.outdated(study) is None
    workspace.run("schema", "--check", "schema.json")
    (workspace.folder / "schema.json").write_text("{}")
    renew = rf"renew it with: \S+ -m orchestrator schema --output {workspace.folder / 'schema.json'}"
    assert re.search(renew, workspace.run("check", study, "--launcher", "local").stdout)
    assert "renew it with: " in workspace.run("schema", "--check", "schema.json", code=1).stderr
    assert "nowhere.json: No such file" in workspace.run("schema", "--check", "nowhere.json", code=2).stderr
