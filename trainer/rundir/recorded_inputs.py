"""Fingerprints of the corpus and tokenizer as a run's files record them: names, and what a difference means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In summary.json, provenance.json and checkpoints; DATA, of every line, is known once the corpus has been read
CORPUS, TOKENIZER, DATA = "corpus_fingerprint", "tokenizer_fingerprint", "data_fingerprint"
SETTINGS = {CORPUS: "data.file_path", TOKENIZER: "data.tokenizer"}


def changed(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return the settings whose file has another content `now`; what only one side knows counts as the same."""
    different = {name for name in (*SETTINGS, DATA) if name in before and before[name] != now.get(name, before[name])}
    found = [setting for name, setting in SETTINGS.items() if name in different]
    return found or ([SETTINGS[CORPUS]] if different else [])
