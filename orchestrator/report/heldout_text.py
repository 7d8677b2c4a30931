"""The sections on the held-out text: standard errors over seeds and documents, and the effects by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import breakdown, documents
from ablatrix.orchestrator.report.content import Block, Folded, Row, Table
from ablatrix.orchestrator.report.formatting import DASH, plain, quantity, signed, span_text, with_margin

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.figure_data import Figure

MANY = 30  # domains; a longer table is folded
STARRED = "* significant after correction across the table."
HEAD = ["cell", "bits per byte", "effect", "SE over seeds", "SE over documents", "SE combined", "95% interval"]


def over_documents(analysis: Analysis) -> list[Block]:
    """Return the standard errors of every effect over seeds and over documents, with bits per byte."""
    base, size = analysis.base, documents.evaluated_text(analysis.study.runs)
    if base is None or size is None:
        return []
    digits = analysis.decimals
    rows = [
        Row([cell.name, plain(cell.average("val_bits_per_byte"), digits), *_errors(cell, digits)], cell is base)
        for cell in analysis.cells.values()
    ]
    text = (
        f"The held-out text is a sample too: {size[0]:,} documents with {size[1]:,} scored tokens. The standard "
        "error over seeds applies to this held-out text, the one over documents to these seeds (Miller 2024), and "
        "the combined one, with its 95% interval, to other seeds and other documents of the same kind. Bits per "
        "byte: NLL divided "
        "by ln 2 and the bytes of the scored text."
    )
    return [text, *_across_tokenizers(analysis), Table(HEAD, rows)]


def _errors(cell: CellResult, digits: int) -> list[str]:
    error = cell.text_error
    if error is None:
        return [DASH] * 5
    numbers = (error.over_seeds, error.over_documents, error.combined)
    shown = [plain(number, digits + 1) for number in numbers]
    return [signed(error.effect, digits), *shown, span_text(error.low, error.high, digits)]


def _across_tokenizers(analysis: Analysis) -> list[str]:
    names = {str(run.setting("data.tokenizer")) for run in analysis.study.runs if run.finished and run.config}
    if len(names) < 2:
        return []
    return [f"The cells have different tokenizers ({', '.join(sorted(names))}): compare their bits per byte, not NLL."]


def domains(analysis: Analysis) -> list[Block]:
    """Return the held-out NLL in each domain and each cell's effect there."""
    parts = breakdown.by_domain(analysis)
    if not parts:
        return []
    names, reference = [cell.name for cell in analysis.compared], analysis.reference or ""
    rows = []
    for part in parts:
        base = plain(part.means.get(reference), analysis.decimals)
        rows.append(Row([part.name, quantity(part.tokens), base, *_effects(part, names, analysis)]))
    text = (
        "Held-out NLL of the baseline by domain, and each cell's effect there with its pointwise 95% confidence "
        f"interval. {STARRED} † differs from the cell's effect on the whole held-out text, seed by seed, after "
        "correction across the table."
    )
    table = Table(["domain", "tokens", reference, *names], rows)
    return [text, table] if len(rows) <= MANY else [text, Folded(f"{len(rows)} domains", [table])]


def context_lengths(analysis: Analysis, figure: Figure | None) -> list[Block]:
    """Return the held-out NLL of every cell at each context length and its effect there."""
    parts = breakdown.by_context_length(analysis)
    if not parts:
        return []
    names, reference = [cell.name for cell in analysis.compared], analysis.reference or ""
    rows = []
    for part in parts:
        means = [plain(part.means.get(name), analysis.decimals) for name in names]
        effects = _effects(part, names, analysis)
        cells = [mean if effect == DASH else f"{mean} ({effect})" for mean, effect in zip(means, effects, strict=True)]
        base = plain(part.means.get(reference), analysis.decimals)
        shown = dict(zip([reference, *names], [base, *cells], strict=True))
        texts = ["cannot" if text == DASH and n in part.reasons else text for n, text in shown.items()]
        rows.append(Row([part.name, quantity(part.tokens), *texts]))
    trained = breakdown.trained_length(analysis.base)
    text = (
        f"Held-out NLL after training with windows of {trained or 'one length'}; the same tokens are scored at each "
        "context length; mean over seeds. In parentheses: the effect at that length with its pointwise 95% confidence "
        f"interval. {STARRED}"
    )
    reasons = {reason for part in parts for reason in part.reasons.values()}
    text += f" “cannot”: {'; '.join(sorted(reasons))}." if reasons else ""
    return [text, Table(["context", "tokens", reference, *names], rows), *([figure] if figure else [])]


def _effects(part: breakdown.Part, names: Sequence[str], analysis: Analysis) -> list[str]:
    """Return the effect of each cell in a part, with its significance marks."""
    found = []
    for name in names:
        effect, excess = part.effects[name], part.excess.get(name)
        marks = ("*" if effect.decided else "") + ("†" if excess and excess.decided else "")
        found.append(with_margin(effect.effect, analysis.decimals) + (f" {marks}" if marks else ""))
    return found


def columns(cell: CellResult) -> dict[str, float | None]:
    """Return the columns on the held-out text for comparison.csv and the JSON record."""
    error = cell.text_error
    return {
        "bits_per_byte": cell.average("val_bits_per_byte"),
        "se_over_seeds": error.over_seeds if error else None,
        "se_over_documents": error.over_documents if error else None,
        "se_combined": error.combined if error else None,
    }
