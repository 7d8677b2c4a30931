"""The final evaluation by held-out document and by domain, for val_documents.json and summary.json."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import atomic_write

if TYPE_CHECKING:
    from ablatrix.trainer.data.heldout import Array, Windows
    from ablatrix.trainer.data.heldout_records import Records
    from ablatrix.trainer.rundir.attempts import Attempt

NO_DOMAIN = "(none)"  # domain of documents without the key


def score_documents(windows: Windows, records: Records, window_nll: Array) -> dict[str, list[Any]]:
    """Return the columns of val_documents.json, with one entry per document that has scored tokens.

    window_nll: (N,) NLL of each window, in nats. Columns: line (from 1; for a file of token ids, the window), tokens
    (scored), bytes (of text in the scored tokens, estimated as their proportion of the document), nll (summed over the
    tokens, in nats) and, with data.domain_key, domain.
    """
    scored, nll = windows.scored, windows.sum_by_document(window_nll)
    rows = [k for k in range(len(scored)) if scored[k]]
    found: dict[str, list[Any]] = {
        "line": [int(windows.lines[k]) + 1 for k in rows],
        "tokens": [int(scored[k]) for k in rows],
        "bytes": [round(records.bytes[k] * scored[k] / windows.counts[k], 3) for k in rows],
        "nll": [float(nll[k]) for k in rows],
    }
    if any(records.domains):
        found["domain"] = [records.domains[k] or NO_DOMAIN for k in rows]
    return found


def write(attempt: Attempt, documents: dict[str, list[Any]]) -> None:
    """Write val_documents.json."""
    text = json.dumps(documents, separators=(",", ":"), allow_nan=False) + "\n"
    atomic_write(attempt.run_dir / run_files.VAL_DOCUMENTS, text, guard=attempt.require)


def summarize(windows: Windows, documents: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the entries of summary.json about the evaluation set: its size, its fingerprint, and the NLL by domain."""
    size, nll = math.fsum(documents["bytes"]), math.fsum(documents["nll"])
    found: dict[str, Any] = {
        "val_documents": len(documents["nll"]),
        "val_bytes": round(size),
        "val_bits_per_byte": nll / (math.log(2) * size) if size else None,
        "val_fingerprint": hashlib.sha256(windows.x.tobytes() + windows.y.tobytes()).hexdigest()[:16],
    }
    if "domain" in documents:
        found["val_nll_by_domain"] = _by_domain(documents)
    return found


def _by_domain(documents: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Return a mapping from domain to NLL per token, scored tokens and documents, with the largest domain first."""
    rows: dict[str, list[tuple[int, float]]] = {}
    for domain, tokens, nll in zip(documents["domain"], documents["tokens"], documents["nll"], strict=True):
        rows.setdefault(domain, []).append((tokens, nll))
    totals = {domain: (sum(t for t, _ in found), math.fsum(n for _, n in found)) for domain, found in rows.items()}
    return {
        domain: {"nll": nll / tokens, "tokens": tokens, "documents": len(rows[domain])}
        for domain, (tokens, nll) in sorted(totals.items(), key=lambda item: (-item[1][0], item[0]))
    }
