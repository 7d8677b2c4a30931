"""What the report says of a corpus that was not read whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ablatrix.orchestrator.report import methods
from ablatrix.orchestrator.report.corpus_notes import corpus_notes, unreached


def run(block_size: int, skipped: dict[str, int], usage: object) -> Any:
    settings = {"data.block_size": block_size}
    return SimpleNamespace(skipped=skipped, summary={"corpus": usage}, setting=settings.get)


def usage(*values: object) -> dict[str, object]:
    return dict(zip(("documents", "tokens", "usable_documents", "usable_tokens"), values, strict=True))


def test_skipped_lines_and_short_documents_are_named() -> None:
    runs = [
        run(256, {"not_json": 30, "too_short": 2, "blank": 0}, usage(3000, 10_000, 222, 1800)),
        run(256, {}, usage(3000, 10_000, 222, 1800)),
        run(8, {}, usage(3000, 10_000, 3000, 10_000)),
    ]
    (skipped,) = corpus_notes(runs)
    assert skipped == (
        "Lines of the corpus that were skipped: 30 lines that are not JSON, 2 documents under 10 characters."
    )
    assert list(unreached(runs)) == [
        "Only 222 of 3,000 documents (18.0% of the training tokens) have the 257 tokens of a window; the others were "
        "never trained on. data.sampling: packed or stream reaches them."
    ]
    nearly_all = [run(8, {}, usage(3000, 10_000, 2900, 9990))]
    assert list(corpus_notes(nearly_all)) == [
        "Documents of at least 9 tokens, from which windows are drawn: 2,900 of 3,000, "
        "with 99.9% of the training tokens."
    ]
    assert not list(unreached(nearly_all))


def test_nothing_is_said_of_a_corpus_read_whole_or_of_a_damaged_summary() -> None:
    damaged = [None, [], {"documents": 3}, usage(3, True, 1, 1), usage(3, "x", 1, 1), usage(-3, 1, 1, 1)]
    runs = [run(8, {}, usage(3, 9, 3, 9)), *(run(8, {}, odd) for odd in damaged)]
    assert not [*corpus_notes(runs), *unreached(runs)]


def test_methods_name_the_sampling() -> None:
    settings: dict[str, object] = {"data.sampling": "packed", "data.document_mask": True}
    words = (
        ", in blocks packed with whole documents by best fit, with attention within each document "
        "(held-out documents begin with the separator too)"
    )
    assert methods.sampling(settings.get) == words
    assert methods.sampling({"data.sampling": "document"}.get) == methods.sampling({}.get) == ""
