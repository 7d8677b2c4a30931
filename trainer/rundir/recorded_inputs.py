"""Fingerprints of a run's corpus, tokenizer and initial weights: their names, and the settings that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In summary.json, provenance.json and checkpoints; DATA covers every line, and is known once the corpus is read
CORPUS, TOKENIZER, DATA = "corpus_fingerprint", "tokenizer_fingerprint", "data_fingerprint"
TEST = "test_fingerprint"  # of the held-out files, if there are any
WEIGHTS = "init_fingerprint"  # of the weights that the run starts from, if it does not draw all of them
SETTINGS = {CORPUS: "data.file_path", TEST: "data.test_file", TOKENIZER: "data.tokenizer", WEIGHTS: "model.init_from"}


def changed(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return the settings whose content has changed; a fingerprint that only one side has is ignored."""
    different = {name for name in (*SETTINGS, DATA) if name in before and before[name] != now.get(name, before[name])}
    found = [setting for name, setting in SETTINGS.items() if name in different]
    return found or ([SETTINGS[CORPUS]] if different else [])
