"""Notes on lines of the corpus that were skipped and on documents too short for a training window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ablatrix.trainer.data.corpus import count_skipped

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord

ENOUGH = 0.9  # fraction of the documents and of the tokens
FIELDS = ("documents", "tokens", "usable_documents", "usable_tokens")


def corpus_notes(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield sentences about skipped lines, and about documents too short for a window if they are few."""
    skipped = max((run.skipped for run in runs), key=lambda counts: sum(counts.values()), default={})
    listed = ", ".join(count_skipped(reason, count) for reason, count in sorted(skipped.items()) if count)
    if listed:
        yield f"Lines of the corpus that were skipped: {listed}."
    for block, usage in sorted(_usages(runs).items()):
        documents, tokens, usable, usable_tokens = usage
        if usable < documents and not _is_small(usage):
            yield (
                f"Documents of at least {block + 1} tokens, from which windows are drawn: {usable:,} of {documents:,}, "
                f"with {usable_tokens / max(tokens, 1):.1%} of the training tokens."
            )


def unreached(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a warning if a large part of the documents was too short for a window."""
    for block, usage in sorted(_usages(runs).items()):
        if _is_small(usage):
            documents, tokens, usable, usable_tokens = usage
            yield (
                f"Only {usable:,} of {documents:,} documents ({usable_tokens / max(tokens, 1):.1%} of the training "
                f"tokens) have the {block + 1} tokens of a window; the others were never trained on. data.sampling: "
                "packed or stream reaches them."
            )


def _is_small(usage: tuple[int, ...]) -> bool:
    documents, tokens, usable, usable_tokens = usage
    return usable < ENOUGH * documents or usable_tokens < ENOUGH * tokens


def _usages(runs: Sequence[RunRecord]) -> dict[int, tuple[int, ...]]:
    """Return block size -> FIELDS of the corpus in the run that reaches the fewest documents."""
    found: dict[int, tuple[int, ...]] = {}
    for run in runs:
        usage, block = run.summary.get("corpus"), run.setting("data.block_size")
        values = [usage.get(name) for name in FIELDS] if isinstance(usage, dict) else []
        whole = tuple(value for value in values if type(value) is int and value >= 0)
        if type(block) is int and len(whole) == len(FIELDS):
            found[block] = min(
                whole, found.get(block, whole), key=lambda values: values[FIELDS.index("usable_documents")]
            )
    return found
