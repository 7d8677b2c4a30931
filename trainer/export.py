"""Export a run's weights, configuration and tokenizer for other programs: Hugging Face's transformers, and minGPT."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablatrix.models.config import PRESETS, ResolvedGPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.models.huggingface import CLASSES, UnsupportedError, architecture, describe_model
from ablatrix.models.huggingface_weights import add_biases, to_huggingface
from ablatrix.trainer import weights
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.manifest import SAFETENSORS
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.files import atomic_write, make_folder, remove

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig

TRANSFORMERS, MINGPT = "transformers", "mingpt"
FORMATS = (TRANSFORMERS, MINGPT)
TOLERANCE = 1e-4  # largest difference between logits
CHECKED_TOKENS = 64


def export(run_dir: Path, target: Path, form: str = TRANSFORMERS) -> str:
    """Write the weights of a run to a new folder and return a one-line description of its content.

    The folder appears only once it is complete. Raises UserError for a run without weights, a model that the format
    does not support, or a folder that is not empty; RunError if transformers computes different logits.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: unknown; choose {' or '.join(FORMATS)}")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--to {target}: not an empty folder; choose a new one")
    config = weights.read_config(run_dir)
    model = ResolvedGPTConfig.of(config.model)
    try:
        kind = architecture(model)
        if form == MINGPT:
            _require_mingpt(model)
    except UnsupportedError as error:
        raise UserError(f"cannot export {run_dir}: {error}") from None
    state, step = weights.read_weights(run_dir, config)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        make_folder(staging, parents=True)
        if form == MINGPT:
            _write_mingpt(staging, config, model, state)
        else:
            _write_transformers(staging, config, model, state)
        staging.replace(target)
    except OSError as error:
        raise RunError(f"cannot write to {target}: {error.strerror or error}") from None
    finally:
        remove(staging)
    what = CLASSES[kind] if form == TRANSFORMERS else "minGPT's GPT"
    return f"{target}: {what} of {run_dir.name} after step {step}"


def _write_transformers(folder: Path, config: RunConfig, model: ResolvedGPTConfig, state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    name, cache_dir = config.data.tokenizer, Path(config.system.cache_dir)
    codec = tokenizer.load(name, cache_dir)
    codec.save_pretrained(str(folder))
    tree = describe_model(model, tokenizer.end_of_text(tokenizer.find(name, cache_dir).folder))
    save_file(to_huggingface(model, state), str(folder / SAFETENSORS), metadata={"format": "pt"})
    atomic_write(folder / run_files.CONFIG, json.dumps(tree, indent=2) + "\n")
    _check_logits(folder, model, state)


@torch.no_grad()
def _check_logits(folder: Path, model: ResolvedGPTConfig, state: dict[str, Any]) -> None:
    """Raise RunError unless transformers, loading the folder, computes the model's logits to within TOLERANCE."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(model.vocab_size, (1, min(model.block_size, CHECKED_TOKENS)), generator=generator)
    ours = GPT.from_state(model, state).eval()(idx)[0]
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    theirs = loaded(idx).logits  # in eval mode, as from_pretrained returns it
    distance = float((ours - theirs).abs().max())
    if not distance <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise RunError(
            f"the installed transformers computes different logits from the exported weights (they differ by "
            f"{distance:.1e}); nothing was exported; try another version of transformers"
        )


def _require_mingpt(model: ResolvedGPTConfig) -> None:
    """Raise UnsupportedError unless a model has minGPT's architecture: GPT-2 with GELU."""
    for name, needed in (("positions", "learned"), ("norm", "layernorm"), ("feedforward", "gelu")):
        if getattr(model, name) != needed:
            raise UnsupportedError(f"minGPT cannot have model.{name}: {getattr(model, name)}")


def _write_mingpt(folder: Path, config: RunConfig, model: ResolvedGPTConfig, state: dict[str, Any]) -> None:
    """Write config.json and model.pt in minGPT's format: its GPT has biases, and the causal mask as a buffer."""
    mask = torch.tril(torch.ones(model.block_size, model.block_size))[None, None]
    masks = {f"transformer.h.{layer}.attn.bias": mask for layer in range(model.n_layer)}
    torch.save(add_biases(state) | masks, folder / run_files.MODEL)
    tree = config.model_dump(mode="json")
    kept = {
        "system": ("seed", "work_dir"),
        "data": ("file_path", "split", "test_size", "block_size"),
        "model": ("vocab_size", "block_size", "embd_pdrop", "resid_pdrop", "attn_pdrop", "swiglu", "rmsnorm", "rope"),
        "trainer": ("device", "num_workers", "max_iters", "batch_size", "learning_rate", "betas", "weight_decay"),
    }
    settings = {section: {name: tree[section][name] for name in names} for section, names in kept.items()}
    # minGPT accepts either the name of a preset or the sizes, never both
    names = ("n_layer", "n_head", "n_embd")
    sizes = {name: getattr(model, name) for name in names}
    preset = next((name for name, known in PRESETS.items() if known == tuple(sizes.values())), None)
    settings["model"] |= {"model_type": preset} | (dict.fromkeys(names) if preset else sizes)
    settings["trainer"]["grad_norm_clip"] = tree["trainer"]["grad_norm_clip"]
    atomic_write(folder / run_files.CONFIG, json.dumps(settings, indent=4) + "\n")
