"""The effect of all features divided among them, as a waterfall figure, a table and a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import formatting
from ablatrix.orchestrator.report.attribution import REST, WHOLE, Method
from ablatrix.orchestrator.report.content import Row, Table
from ablatrix.orchestrator.report.figure_data import Figure, Step, Waterfall
from ablatrix.orchestrator.report.forests import beside_zero

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.attribution import Attribution
    from ablatrix.orchestrator.report.contrasts import Contrast
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure

EXPLAINED = {
    Method.EXACT: "Exact: every combination of the features was run.",
    Method.PAIRS: "From the main effects and pairs of the fraction: exact if no three features interact.",
    Method.ENDS: (
        "Estimated by the mean of what a feature adds to the baseline (first in) and to all others (last in): exact if "
        f"no three features interact. “{REST}”: the remainder, due to interactions of three or more."
    ),
}


def figure(analysis: Analysis) -> Figure | None:
    """Return the waterfall from the baseline to all features, starting with the share that helps most."""
    found, measure = analysis.attribution, analysis.measure
    if found is None or found.whole.effect is None:
        return None
    at, steps = 0.0, []
    for share in _sorted(found, measure):
        assert share.effect is not None
        steps.append(_step(share.name, at, share.effect, analysis))
        at += share.effect.mean
    whole = found.whole.effect
    if found.rest and found.rest.effect:
        steps.append(replace(_step(REST, at, found.rest.effect, analysis, alone=True), helps=None))
    steps.append(replace(_step(WHOLE, 0.0, whole, analysis, alone=True), total=True))
    ends = [end for step in steps for end in (step.start, step.end, *(step.interval or ()))]
    room = 0.08 * (max(ends) - min(ends)) or 1e-3
    waterfall = Waterfall(
        tuple(steps),
        f"{measure.label}, difference from baseline",
        beside_zero(min(*ends, 0.0) - room, max(*ends, 0.0) + room),
        measure.sides("better", "worse"),
    )
    caption = (
        f"Shapley values: the mean, over all orders of switching the features on, of what each adds; "
        f"{measure.better_side}. {EXPLAINED[found.method]}"
    )
    if found.shares[0].effect and found.shares[0].effect.joint_low is not None:
        caption += (
            f" Line at the end of a bar: 95% interval, for the shares simultaneous over {len(found.shares)} features."
        )
    return Figure("attribution", _title(found, analysis), caption, waterfall=waterfall)


def _sorted(found: Attribution, measure: Measure) -> list[Contrast]:
    sign = -1.0 if measure.higher_is_better else 1.0
    return sorted(found.shares, key=lambda c: sign * c.effect.mean if c.effect else 0.0)


def _step(name: str, start: float, effect: Effect, analysis: Analysis, *, alone: bool = False) -> Step:
    """Return a bar. alone: use the pointwise interval."""
    low, high = _bounds(effect, alone)
    interval = None if low is None or high is None else (start + low, start + high)
    text, helps = formatting.signed(effect.mean, analysis.decimals), analysis.measure.is_better(effect.mean)
    return Step(name, start, start + effect.mean, text, helps, interval)


def _title(found: Attribution, analysis: Analysis) -> str:
    """Return `rope contributes most: −0.188 nats; all features together: −0.282 nats`."""
    whole = found.whole.effect
    known = [(share.name, share.effect.mean) for share in found.shares if share.effect]
    assert whole is not None
    name, most = max(known, key=lambda pair: abs(pair[1]))
    digits, unit = analysis.decimals, analysis.measure.short_unit
    share, total = (f"{formatting.signed(value, digits)}{unit}" for value in (most, whole.mean))
    return f"{_names(found)[name]} contributes most: {share}; all features together: {total}"


def _names(found: Attribution) -> dict[str, str]:
    """Return the names of the features for titles and sentences."""
    return formatting.shorten([share.name for share in found.shares], 40)


def table(analysis: Analysis) -> Table | None:
    """Return the shares with their intervals, and the whole."""
    found, digits = analysis.attribution, analysis.decimals
    if found is None or found.whole.effect is None:
        return None
    ends = found.method is Method.ENDS
    first = {contrast.name: contrast.effect for contrast in found.first_in}
    last = {contrast.name: contrast.effect for contrast in found.last_in}

    def row(name: str, effect: Effect | None, alone: bool = False) -> Row:
        low, high = _bounds(effect, alone)
        cells = [name, formatting.signed(effect.mean if effect else None, digits)]
        cells += [formatting.span_text(low, high, digits)]
        if ends:
            cells += [formatting.with_margin(each.get(name), digits) for each in (first, last)]
        return Row(cells, name == WHOLE)

    rows = [row(share.name, share.effect) for share in _sorted(found, analysis.measure)]
    if found.rest:
        rows.append(row(REST, found.rest.effect, alone=True))
    head = ["feature", "share", "95% interval", *(["first in", "last in"] if ends else [])]
    return Table(head, [*rows, row(WHOLE, found.whole.effect, alone=True)])


def _bounds(effect: Effect | None, alone: bool) -> tuple[float | None, float | None]:
    """Return the interval of a share: simultaneous over all shares, or pointwise if `alone`."""
    if effect is None:
        return None, None
    return (effect.low, effect.high) if alone else (effect.joint_low, effect.joint_high)


def sentence(analysis: Analysis) -> str:
    """Return `Shares of all on (−0.282 nats): rope −0.188, swiglu −0.094.`, '' without an attribution."""
    found, digits = analysis.attribution, analysis.decimals
    if found is None or found.whole.effect is None:
        return ""
    names = _names(found)
    shares = [
        f"{names[share.name]} {formatting.signed(share.effect.mean, digits)}"
        for share in _sorted(found, analysis.measure)
        if share.effect
    ]
    if found.rest and found.rest.effect:
        shares.append(f"{REST} {formatting.signed(found.rest.effect.mean, digits)}")
    whole = f"{formatting.signed(found.whole.effect.mean, digits)}{analysis.measure.short_unit}"
    return f"Shares of {WHOLE} ({whole}): {', '.join(shares)}."
