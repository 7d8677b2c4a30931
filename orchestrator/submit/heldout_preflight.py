"""Preflight of the held-out text: there is enough of it, it is the same for all cells, and it contains the domains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report.document_scores import FEW_DOCUMENTS, FEW_TOKENS, is_small
from ablatrix.trainer.data.corpus_files import find_files, is_flat, total_size
from ablatrix.trainer.data.corpus_usage import read_beginning
from ablatrix.trainer.data.heldout import HeldOut
from ablatrix.trainer.data.heldout_records import find_domain
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig, RunConfig
    from ablatrix.trainer.data.token_store import TokenStore


def describe_small(config: RunConfig, store: TokenStore | None, most_bytes: int) -> Iterator[str]:
    """Yield a warning if the held-out text is too small to decide much. Raises DataError if it cannot be evaluated.

    store: the tokens of the corpus, None if it is too large to read now, as is a test file over `most_bytes`.
    """
    data, cache_dir = config.data, Path(config.system.cache_dir)
    documents, tokens = data.held_out, FEW_TOKENS
    if data.test_file and (total_size(data.test_corpus) <= most_bytes or is_flat(find_files(data.test_corpus)[0])):
        text = HeldOut.of_file(data, cache_dir)
    elif data.test_file or store is None:
        text = None
    else:
        text = HeldOut.of(store, data)
    if text is not None:
        scored = text.windows(data.block_size, config.trainer.eval_tokens).scored
        documents, tokens = int(np.count_nonzero(scored)), int(scored.sum())
    if isinstance(documents, int) and documents and is_small(documents, tokens):
        size = count(documents, "document")
        size += f" with {tokens:,} scored tokens" if text is not None else ""
        yield (
            f"the held-out text is small ({size}), so effects on it may not hold for other text; use at "
            f"least {FEW_DOCUMENTS} documents and {FEW_TOKENS:,} tokens (data.test_size, "
            "trainer.eval_tokens)"
        )


def describe_different(configs: Iterable[RunConfig]) -> Iterator[str]:
    """Yield a warning if cells are evaluated on different text."""
    kept = ("file_path", "test_size", "split", "text_key")
    texts = {
        str(data.test_file or [getattr(data, name) for name in kept]) for data in (config.data for config in configs)
    }
    if len(texts) > 1:
        yield (
            "the cells are evaluated on different held-out text, so their NLL cannot be compared; set "
            "data.test_file, or one data.file_path and data.test_size for all"
        )


def find_domain_problem(data: DataConfig) -> str:
    """Return why `data.domain_key` finds nothing at the beginning of the held-out corpus, '' if it finds a value."""
    corpus = data.test_corpus if data.test_file else data
    if not data.domain_key:
        return ""
    if is_flat(find_files(corpus)[0]):
        return "a file of token ids has no domains; leave it out"
    lines = read_beginning(corpus)
    records = [lines.record(k) for k in range(len(lines)) if not lines.text(k)[1]]
    if not records or any(find_domain(record, data.domain_key) for record in records):
        return ""
    keys = ", ".join(_list_keys(records[0]))
    return f"no document in the beginning of the corpus has a value at {data.domain_key!r}; the keys are {keys}"


def _list_keys(record: dict[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a record's values, quoted."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _list_keys(value, f"{prefix}{key}.")
        else:
            yield repr(prefix + key)
