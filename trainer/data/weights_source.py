"""What `model.init_from` names: a model of the offline cache, an exported folder, or a run's folder. Torch-free."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.models.huggingface import UnsupportedError, read_model
from ablatrix.trainer.config import load
from ablatrix.trainer.config.tokenizer_names import canonical, is_folder
from ablatrix.trainer.data.manifest import SAFETENSORS, find_incomplete, read_manifest
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError, OfflineCacheError, UserError
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.models.config import ResolvedGPTConfig

SETTING = "model.init_from"
MODELS = "models"  # folder in the offline cache


@dataclass(frozen=True)
class Source:
    """A weights file and its model. huggingface: the weights have Hugging Face's names; else it is a state dict."""

    name: str
    path: Path
    model: ResolvedGPTConfig
    huggingface: bool


def find_source(name: str, cache_dir: Path) -> Source:
    """Return the source of the weights that a value of `model.init_from` refers to.

    Raises OfflineCacheError, with the command that fetches them, or UserError.
    """
    folder = Path(name) if is_folder(name) else _find_cached(canonical(name), cache_dir)
    config = folder / run_files.CONFIG
    weights = folder / SAFETENSORS
    if weights.exists():
        tree = run_files.read_json(config)
        if tree is None:
            raise UserError(f"{SETTING}: {config} is missing or not JSON; export the run again")
        return Source(name, weights, read_huggingface(tree, config), huggingface=True)
    if not (folder / run_files.MODEL).exists():
        raise UserError(
            f"{SETTING}: {folder} has neither {SAFETENSORS} nor {run_files.MODEL}; give an exported folder, or the "
            "folder of a finished run"
        )
    try:
        model = load(config).model
    except AblatrixError as error:
        raise UserError(f"{SETTING}: {config}: {error}") from None
    if None in (model.vocab_size, model.block_size):
        raise UserError(f"{SETTING}: {config} lacks vocab_size or block_size; give the folder of a finished run")
    return Source(name, folder / run_files.MODEL, model.resolved(0, 0), huggingface=False)


def read_huggingface(tree: dict[str, object], path: Path) -> ResolvedGPTConfig:
    """Return the model of a config.json. Raises UserError if Ablatrix does not support it."""
    try:
        return read_model(tree)
    except UnsupportedError as error:
        raise UserError(f"{SETTING}: {path} is not a model that can be trained here: {error}") from None


def _find_cached(name: str, cache_dir: Path) -> Path:
    """Return the folder of a model in the offline cache. Raises OfflineCacheError if it is missing or incomplete."""
    folder = cached_folder(name, cache_dir)
    entry = read_manifest(cache_dir).models.get(name)
    command = f"{program()} warm-cache --weights {name} --cache-dir {shlex.quote(str(cache_dir))}"
    advice = f"run `{command}` where there is internet; a folder is written as ./{name}"
    if entry is None:
        raise OfflineCacheError(
            f"{SETTING}: the weights of {name!r} are not in the offline cache {cache_dir}: {advice}"
        )
    incomplete = find_incomplete(folder, entry.files)
    if incomplete:
        raise OfflineCacheError(f"{SETTING}: {incomplete} is missing or incomplete: {advice}")
    return folder


def cached_folder(name: str, cache_dir: Path) -> Path:
    """Return the folder of the offline cache for the weights of a hub repository."""
    return Path(cache_dir) / MODELS / name.replace("/", "--")
