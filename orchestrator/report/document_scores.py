"""The final evaluation of a run by held-out document, from val_documents.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ablatrix.trainer.rundir.run_files import parse_json

FEW_DOCUMENTS, FEW_TOKENS = 100, 100_000


@dataclass(frozen=True)
class DocumentScores:
    """Content of val_documents.json: line, scored tokens and summed NLL (nats) of each held-out document, (D,) each."""

    line: np.ndarray
    tokens: np.ndarray
    nll: np.ndarray

    def is_alike(self, other: DocumentScores) -> bool:
        """True if both are sums over the same tokens of the same documents."""
        return np.array_equal(self.line, other.line) and np.array_equal(self.tokens, other.tokens)


def parse_scores(data: bytes) -> DocumentScores | None:
    """Parse val_documents.json; None if it cannot be used."""
    table: Any = parse_json(data.decode("utf-8", "replace")) if data else None
    try:
        line, tokens, nll = (np.asarray(table[name], dtype=np.float64) for name in ("line", "tokens", "nll"))
    except (TypeError, KeyError, ValueError):
        return None
    whole = line.ndim == 1 and line.shape == tokens.shape == nll.shape and len(nll) > 0
    usable = whole and np.isfinite(nll).all() and float(tokens.min()) > 0
    return DocumentScores(line, tokens, nll) if usable else None


def is_small(documents: int, tokens: int) -> bool:
    """True if the held-out text is too short to show anything but large effects."""
    return documents < FEW_DOCUMENTS or tokens < FEW_TOKENS
