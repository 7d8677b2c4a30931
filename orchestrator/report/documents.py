"""The held-out text as a sample of documents: how certain an effect is for other seeds and for other text of its kind.

Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640), with documents as clusters of tokens: d_j is the
difference of the summed NLL of document j, T_j its scored tokens, effect = sum d_j / sum T_j, and over D documents
SE = sqrt(D / (D - 1) sum (d_j - effect T_j)^2) / sum T_j.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report.document_scores import FEW_DOCUMENTS, FEW_TOKENS, is_small
from ablatrix.orchestrator.report.statistics import t_quantile

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord
    from ablatrix.orchestrator.report.document_scores import DocumentScores
    from ablatrix.orchestrator.report.statistics import Effect


@dataclass(frozen=True)
class TextError:
    """The effect of a cell in nats per token, with its standard errors.

    over_seeds: for this held-out text, None with one seed; over_documents: for these seeds; combined: for other seeds
    and other documents, with the 95% interval low to high (Welch-Satterthwaite).
    """

    effect: float
    seeds: int
    documents: int
    over_documents: float
    over_seeds: float | None = None
    combined: float | None = None
    low: float | None = None
    high: float | None = None


def document_error(d: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Return (effect, standard error over documents) in nats per token. d, tokens: (D,), D >= 2."""
    total, count = float(tokens.sum()), len(d)
    effect = float(d.sum()) / total
    squares = float(((d - effect * tokens) ** 2).sum())
    return effect, math.sqrt(count / (count - 1) * squares) / total


def text_error(runs: Sequence[RunRecord], base: Sequence[RunRecord], effect: Effect | None) -> TextError | None:
    """Return the standard errors of a cell's effect at the end of training, over the seeds that both cells have.

    runs, base: usable runs of the cell and of the baseline; effect: what the verdict is based on. None if the runs kept
    no scores or were evaluated on different tokens.
    """
    theirs = _scores_by_seed(base)
    pairs = [(mine, theirs[seed]) for seed, mine in _scores_by_seed(runs).items() if seed in theirs]
    if not pairs or len(pairs[0][0].nll) < 2:
        return None
    first = pairs[0][0]
    if not all(scores.is_alike(first) for pair in pairs for scores in pair):
        return None
    d = np.stack([mine.nll - other.nll for mine, other in pairs])  # (seeds, D)
    mean, over_documents = document_error(d.mean(axis=0), first.tokens)
    found = TextError(mean, len(pairs), d.shape[1], over_documents)
    over_seeds = _seed_error(effect, d.sum(axis=1) / first.tokens.sum())
    return _with_seeds(found, *over_seeds) if over_seeds else found


def _seed_error(effect: Effect | None, effects: np.ndarray) -> tuple[float, float] | None:
    """Return (standard error over seeds, degrees of freedom): the verdict's, or else from the pairs themselves.

    effects: (n,), one per seed. None with one seed and no verdict.
    """
    n = len(effects)
    if effect is not None and effect.df and effect.error:
        return effect.error, effect.df
    return (float(effects.std(ddof=1)) / math.sqrt(n), n - 1) if n > 1 else None


def _with_seeds(error: TextError, seeds: float, df: float) -> TextError:
    """Return the errors with the one over seeds added. seeds, df: that error and its degrees of freedom."""
    documents = error.over_documents
    combined = math.hypot(seeds, documents)
    if not combined:
        return replace(error, over_seeds=seeds, combined=combined)
    df_combined = combined**4 / (seeds**4 / df + documents**4 / (error.documents - 1))
    margin = t_quantile(df_combined) * combined
    low, high = error.effect - margin, error.effect + margin
    return replace(error, over_seeds=seeds, combined=combined, low=low, high=high)


def _scores_by_seed(runs: Sequence[RunRecord]) -> dict[int, DocumentScores]:
    return {run.seed: run.documents for run in runs if run.documents is not None}


def evaluated_text(runs: Sequence[RunRecord]) -> tuple[int, int] | None:
    """Return (documents, scored tokens) of the smallest evaluation set, None if no run recorded its size."""
    found = [_size(run) for run in runs if run.usable]
    known = [size for size in found if size]
    return min(known, key=lambda size: size[1]) if known else None


def _size(run: RunRecord) -> tuple[int, int] | None:
    documents, tokens = run.number("val_documents"), run.number("val_tokens")
    return (int(documents), int(tokens)) if documents and tokens else None


def notes(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield a warning if the held-out text is too short to decide much."""
    size = evaluated_text(runs)
    if size and is_small(*size):
        yield (
            f"The held-out text is small ({size[0]:,} documents, {size[1]:,} scored tokens): an effect on it may not "
            f"hold for other text. Hold out at least {FEW_DOCUMENTS} documents and {FEW_TOKENS:,} tokens "
            "(data.test_size, trainer.eval_tokens)."
        )
