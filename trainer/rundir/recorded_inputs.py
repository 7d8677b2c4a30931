"""Fingerprints of a run's corpus, tokenizer and initial weights: their keys, and which settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys in summary.json, provenance.json and checkpoints; DATA covers every line, and is known once the corpus is read
CORPUS, TOKENIZER, DATA = "corpus_fingerprint", "tokenizer_fingerprint", "data_fingerprint"
TEST = "test_fingerprint"  # for the held-out files, if there are any
WEIGHTS = "init_fingerprint"  # for the weights that the run starts from, unless all are drawn
SETTINGS = {CORPUS: "data.file_path", TEST: "data.test_file", TOKENIZER: "data.tokenizer", WEIGHTS: "model.init_from"}


def changed(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return the settings whose content has changed, ignoring fingerprints that only one side has."""
    different = {name for name in (*SETTINGS, DATA) if name in before and before[name] != now.get(name, before[name])}
    found = [setting for name, setting in SETTINGS.items() if name in different]
    return found or ([SETTINGS[CORPUS]] if different else [])
