"""The wording and digits of a study's results, shared by the page, Markdown, LaTeX, the terminal and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import across_sizes, verdicts
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.formatting import (
    DASH,
    join_names,
    p_equals,
    p_text,
    percent,
    plain,
    quantity,
    shorten,
    signed,
    span_text,
)
from ablatrix.orchestrator.study.scale import Size
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.across_sizes import Trend
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.contrasts import Contrast

NAMED, OF_MANY = 6, 3  # most cells named in one part of the headline, and how many if there are more than that
LONGEST = 40  # characters of a name in a sentence
PARAMETERS_DIFFER = 5e-4  # relative difference from which on the ratio of parameters is shown


@dataclass(frozen=True)
class CellText:
    """A cell's row in every table. interval: simultaneous, decides the verdict; runs: number averaged."""

    name: str
    value: str
    effect: str
    interval: str
    pointwise: str
    p: str
    verdict: str
    runs: str
    parameters: str


def cell_text(cell: CellResult, analysis: Analysis) -> CellText:
    """Return a cell's result as strings."""
    digits, effect = analysis.decimals, cell.effect
    return CellText(
        name=cell.name,
        value=_value(cell, analysis),
        effect=signed(effect.mean if effect else None, digits),
        interval=span_text(effect.joint_low, effect.joint_high, digits) if effect else DASH,
        pointwise=span_text(effect.low, effect.high, digits) if effect else DASH,
        p=p_text(effect.p_joint if effect else None),
        verdict=verdicts.word(cell, analysis),
        runs=f"{effect.n if effect else len(cell.values)} of {len(cell.runs)}",
        parameters=parameters(cell, analysis.base),
    )


def every_cell(analysis: Analysis) -> Iterator[tuple[str, CellResult, Analysis]]:
    """Yield (name, cell, analysis of its size) of every cell; with a scale axis the name is `swiglu@gpt-nano`."""
    for size, found in analysis.by_size.items():
        for cell in found.cells.values():
            yield Size(size).cell(cell.name), cell, found


def _value(cell: CellResult, analysis: Analysis) -> str:
    """Return the mean at the compared budget, followed by the final mean in parentheses if that differs."""
    final = plain(cell.mean, analysis.decimals)
    at_budget = plain(cell.mean_at_budget, analysis.decimals) if cell.at_budget else final
    return final if at_budget == final else f"{at_budget} ({final})"


def parameters(cell: CellResult, base: CellResult | None) -> str:
    """Return `2.51 M (+0.1%)`, the second part only if the baseline has a different number."""
    ratio = cell.parameters / base.parameters if base and base.parameters and cell.parameters else 1.0
    return quantity(cell.parameters) + (f" ({percent(ratio)})" if abs(ratio - 1) > PARAMETERS_DIFFER else "")


# ---- the study in one sentence ---------------------------------------------------------------------------------------


def headline(analysis: Analysis) -> str:
    """Return what the study shows: `swiglu (−0.145 nats) and all_on (−0.282 nats) help. cosine: inconclusive.`

    With a scale axis, this is the result at the largest size that has results.
    """
    if analysis.ladder:
        sizes, shown = list(analysis.ladder.sizes), analysis.ladder.shown
        place = "" if shown == sizes[-1] else " with results so far"
        found = headline(replace(analysis, ladder=None))
        return f"At {shown}, the largest of {len(sizes)} sizes{place}: {found}{_trends(analysis)}"
    if (progress := analysis.progress) and not progress.finished:
        looks = len(progress.looks)
        if not progress.ended:
            return f"No verdict yet: look 1 of {looks} has not ended."
        return f"{headline(replace(analysis, progress=None))} Look {progress.ended} of {looks} has ended."
    if not any(cell.effect for cell in analysis.compared):
        done, runs = sum(run.finished for run in analysis.study.runs), analysis.study.runs
        return f"No cell can be compared with the baseline yet: {done} of {count(len(runs), 'run')} finished."
    if analysis.factorial and any(c.effect for c in analysis.main_effects):
        return _main_effects(analysis)
    parts = [_decided(analysis, Verdict.HELPS), _decided(analysis, Verdict.HURTS)]
    parts += [_others(analysis, verdict) for verdict in OTHERS]
    parts += [f"Each cell at its best {analysis.tuned.tune.setting}."] if analysis.tuned else []
    return " ".join(part for part in parts if part)


def _trends(analysis: Analysis) -> str:
    """Return ` With compute, the effect of rope grows.`, '' if no change is shown."""
    parts = changes(across_sizes.find_trends(analysis))
    return f" With compute, {' and '.join(parts)}." if parts else ""


def changes(trends: Sequence[Trend]) -> list[str]:
    """Return which effects are shown to change with compute: `the effect of rope grows`."""
    found = {word: across_sizes.changing(trends, word) for word in ("grows", "shrinks", across_sizes.CHANGES_SIGN)}
    return [f"the effect of {join_names(names)} {word}" for word, names in found.items() if names]


def _main_effects(analysis: Analysis) -> str:
    """Return `Main effects: rope (−0.061 nats) helps. warmup: inconclusive. No pairwise interaction is significant.`"""
    read: dict[str, list[Contrast]] = {"helps": [], "hurts": []}
    for contrast in analysis.main_effects:
        word = verdicts.contrast_verdict(contrast, analysis.measure, "hurts", "helps", "inconclusive")
        read.setdefault(word, []).append(contrast)
    parts, shown = [], shown_names(analysis)
    for word, found in read.items():
        pairs = [(c.name, c.effect.mean) for c in found if c.effect]
        if word in ("helps", "hurts"):
            parts += [f"{_effects(pairs, analysis)} {_verb(word, len(pairs))}."] if pairs else []
        elif found:
            word = verdicts.ONE_SEED if word == verdicts.ONE_SEED_WORD else word
            names = f"{join_names([shown[c.name] for c in found], NAMED)}: "
            parts.append(f"{'' if len(found) == len(analysis.main_effects) else names}{word}.")
    return f"Main effects: {' '.join([*parts, *_interactions(analysis)])}"


def _interactions(analysis: Analysis) -> list[str]:
    """Return `Synergy: swiglu × rope (−0.034 nats).` and likewise for conflicts, or that none is significant."""
    tested = [c for c in analysis.combinations.pairs if c.effect and c.effect.p_joint is not None]
    pairs = [(c.name, c.effect.mean) for c in tested if c.effect and c.decided]
    if tested and not pairs:
        return ["No pairwise interaction is significant."]
    if not analysis.combinations.pairs:
        return ["Interactions are not estimated."]
    better = [(name, mean) for name, mean in pairs if analysis.measure.is_better(mean)]
    kinds = {"Synergy": better, "Conflict": [pair for pair in pairs if pair not in better]}
    return [f"{kind}: {_effects(found, analysis)}." for kind, found in kinds.items() if found]


def shown_names(analysis: Analysis) -> dict[str, str]:
    """Return the names of cells, main effects and pairs for sentences and titles, distinct within each kind."""
    pairs = [contrast.name for contrast in analysis.combinations.pairs]
    main = [contrast.name for contrast in analysis.main_effects]
    return shorten(pairs, LONGEST) | shorten(analysis.cells, LONGEST) | shorten(main, LONGEST)


def _effects(pairs: Sequence[tuple[str, float]], analysis: Analysis) -> str:
    """Return `rope (−0.188 nats) and all_on (−0.282 nats)`; of many, the first three and the number of the others."""
    names, unit = shown_names(analysis), analysis.measure.short_unit
    shown = [f"{names[name]} ({signed(mean, analysis.decimals)}{unit})" for name, mean in pairs]
    return join_names(shown, NAMED if len(shown) <= NAMED else OF_MANY)


def _verb(word: str, number: int) -> str:
    return word if number == 1 else word.removesuffix("s")


OTHERS = {
    Verdict.NO_EFFECT: "no effect larger than the margin",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.UNSTABLE: "unstable, with more diverged runs than the baseline",
    Verdict.NO_CLAIM: "no conclusion can be drawn",
    Verdict.IDENTICAL: "bit-identical to the baseline",
    Verdict.DIVERGED: "diverged",
    Verdict.NO_RESULT: "no result",
}


def _with(analysis: Analysis, verdict: Verdict) -> list[CellResult]:
    """Return the cells with a verdict; for helps and hurts, the largest effect first."""
    found = [cell for cell in analysis.compared if cell.verdict is verdict]
    return sorted(found, key=lambda c: -abs(c.effect.mean) if c.effect else 0.0) if verdict.decided else found


def _decided(analysis: Analysis, verdict: Verdict) -> str:
    """Return `rope (−0.188 nats) and all_on (−0.282 nats) help.`"""
    cells = _with(analysis, verdict)
    if not cells:
        return ""
    pairs = [(cell.name, cell.effect.mean) for cell in cells if cell.effect]
    return f"{_effects(pairs, analysis)} {_verb(verdict, len(pairs))}."


def _others(analysis: Analysis, verdict: Verdict) -> str:
    cells = _with(analysis, verdict)
    if not cells:
        return ""
    shown = shown_names(analysis)
    names = join_names([shown[cell.name] for cell in cells]) if len(cells) <= NAMED else f"{len(cells)} cells"
    reasons = {verdicts.no_claim(cell, analysis) for cell in cells} if verdict is Verdict.NO_CLAIM else set()
    words = verdicts.word(cells[0], analysis) if verdict is Verdict.NO_EFFECT else OTHERS[verdict]
    words = reasons.pop() if len(reasons) == 1 else words
    if verdict is Verdict.NO_CLAIM and len(cells) == len(analysis.compared):
        return f"{words[:1].upper()}{words[1:]}."
    return f"{names}: {words}."


# ---- the A/A check ---------------------------------------------------------------------------------------------------


def aa_sentence(analysis: Analysis) -> str:
    """Return the result of the A/A check, '' if the study has none."""
    found = analysis.aa
    if found is None:
        return ""
    seeds = f"the baseline with seeds {join_names(list(map(str, found.seeds)))}"
    effect, digits, unit = found.effect, analysis.decimals, analysis.measure.short_unit
    if found.verdict is Verdict.IDENTICAL:
        return f"A/A check failed: {seeds} ends exactly as with its own seeds, so the seed does not reach the trainer."
    if effect is None or effect.low is None:
        done, planned = sum(run.usable for run in found.runs), count(len(found.runs), "run")
        return f"A/A check: {seeds} cannot be compared, with {done} of {planned} usable; it needs two of each."
    size = f"{signed(effect.mean, digits)}{unit}"
    size += f" (95% interval {span_text(effect.low, effect.high, digits)}"
    if found.failed:
        return (
            f"A/A check failed: {seeds} differs from itself by {size}, p {p_equals(effect.p)}). This happens by chance "
            "in one study in twenty; otherwise runs vary more than their seeds show, and verdicts are overconfident."
        )
    return f"A/A check passed: {seeds} differs from itself by {size}), no more than chance explains."
