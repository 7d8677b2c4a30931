"""`check` compares the weights of `model.init_from` with the model of every cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.models.huggingface import describe_model
from ablatrix.models.huggingface_weights import to_huggingface
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit.weights_preflight import check_weights

STUDY = """\
name: s
base: {{data: {{file_path: x.jsonl, block_size: 8}}, model: {{model_type: gpt-nano, init_from: {weights}}}}}
features:
  wider: {{model: {{n_embd: 96}}}}
  swiglu: {{model.swiglu: true}}
  scratch: {{model: {{n_layer: 2, init_from: null}}}}
"""


@pytest.mark.slow
def test_the_cell_whose_model_does_not_fit_is_named(tmp_path: Path) -> None:
    config = GPTConfig(model_type="gpt-nano").resolved(4096, 8)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps(describe_model(config)))
    save_file(to_huggingface(config, GPT(config).state_dict()), tmp_path / "weights" / "model.safetensors")
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(weights=tmp_path / "weights"))
    loaded = load_experiment(file, ())
    (found,) = check_weights(loaded, matrix.runs(loaded, lambda config: (4096, 4095)))
    assert found.endswith(
        f"study.yaml:4: cell wider: model.n_embd: 96, but the weights of model.init_from: {tmp_path / 'weights'} "
        "have 48; set it to 48"
    )
