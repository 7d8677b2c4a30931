"""What identifies a configuration, for the name of its run and for its checkpoints: all that decides the result."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.config import optimization, tokenizer_names

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig

# Settings that cannot change loss.csv or the final evaluation: places, restarting, and what else is written
NEUTRAL: dict[str, Any] = {
    "system": {"work_dir", "cache_dir"},
    "trainer": {
        *("resume", "num_workers", "ckpt_interval", "save_total_limit", "save_best"),
        *("sample_interval", "sample_prompt"),
        *("strategy", "pipeline_schedule", "pipeline_microbatches"),
    },
    "info": True,
}


def whole(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the result, one spelling for all that mean the same."""
    # a custom callback may do anything to the training
    callbacks = set(type(config.callbacks).model_fields) - {"custom"}
    found = config.model_dump(mode="json", exclude={**NEUTRAL, "callbacks": callbacks})
    path = config.data.file_path
    places = [same_place(entry) for entry in ([path] if isinstance(path, str) else path)]
    found["data"]["file_path"] = places[0] if len(places) == 1 else places
    found["data"]["tokenizer"] = tokenizer_names.canonical(config.data.tokenizer)
    if None not in (config.model.n_layer, config.model.n_head, config.model.n_embd):
        del found["model"]["model_type"]  # a name for these sizes
    found["trainer"]["device"] = found["trainer"]["device"].partition(":")[0]
    if config.trainer.schedule is not None:
        del found["trainer"]["use_cosine"]  # a short form of it
    if not config.trainer.early_stop_patience:
        del found["trainer"]["early_stop_min_delta"]  # never read
    return found


def until(config: RunConfig, step: int) -> dict[str, Any]:
    """Return the settings that decide the first `step` steps of a resolved configuration.

    The corpus and the tokenizer are told by their content, not by their place. trainer.max_iters is left out where the
    learning rates up to this step do not depend on it.
    """
    found = whole(config)
    del found["data"]["file_path"], found["data"]["tokenizer"], found["trainer"]["eval_blocks"]
    if step <= optimization.steady_until(config.trainer):
        for name in ("max_iters", *optimization.END_SETTINGS):
            del found["trainer"][name]
    return found


def digest(identity: dict[str, Any]) -> str:
    """Return the first 8 hex digits of the SHA-256 of an identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two identities: dotted key -> (value there, value here)."""
    return {
        f"{section}.{name}": (value, here[section][name])
        for section, settings in there.items()
        for name, value in settings.items()
        if name in here[section] and here[section][name] != value
    }


def same_place(path: str) -> str:
    """Return one spelling for all paths of a file: relative inside the working folder, else absolute.

    A workspace that is moved keeps the names of its runs.
    """
    if not path:
        return path
    full, here = os.path.abspath(path), os.getcwd()
    for candidate in (full, os.path.realpath(full)):  # the working folder may have been reached by a link
        if candidate.startswith(here.rstrip(os.sep) + os.sep):
            return os.path.relpath(candidate, here)
    return full
