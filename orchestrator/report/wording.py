"""What the numbers mean, in words: the verdict on each cell, flags, notes on the study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.analysis import MATCHED, Analysis, CellResult, Contrast
from ablatrix.orchestrator.report.collect import RunRecord
from ablatrix.orchestrator.report.statistics import Effect, Reach
from ablatrix.orchestrator.study.metric import Measure

ONE_SEED = "descriptive only: one seed, no claim"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EM DASH}"
REPEATED = 0.5  # of the rows of a run; fewer are a progress bar's
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def signed(value: float | None, digits: int = 4) -> str:
    """+0.0421, with a real minus sign; an em dash for None."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS)


def plain(value: float | None, digits: int = 4) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def p_text(p: float | None) -> str:
    """p = 0.012; never p = 0.000."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def with_margin(effect: Effect | None) -> str:
    """-0.0421 ± 0.0110: the effect and half its interval."""
    if effect is None:
        return DASH
    return signed(effect.mean) + (f" ± {effect.half_width:.4f}" if effect.half_width is not None else "")


def interval(effect: Effect | None) -> str:
    if effect is None or effect.low is None or effect.high is None:
        return DASH
    return f"{signed(effect.low)} to {signed(effect.high)}"


def quantity(value: float | None, unit: str = "") -> str:
    """1234567 -> 1.23 M: three digits and a metric prefix."""
    if value is None or not math.isfinite(value):
        return DASH
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            value, unit = value / factor, f"{prefix}{unit}"
            break
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 3)}f} {unit}".strip()


def tick_labels(values: Sequence[float]) -> list[str]:
    """The shortest texts of round numbers on one axis, all written alike: 0.04, 80 k, 4e−5."""
    tiny = any(0 < abs(v) < 9.99e-5 for v in values)
    return [_tick(v, tiny).replace("-", MINUS) for v in values]


def _tick(value: float, tiny: bool) -> str:
    if abs(value) >= 1e3:
        factor, prefix = next(p for p in PREFIXES if abs(value) >= p[0])
        return f"{value / factor:.4g} {prefix}"
    if tiny and value:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def duration(seconds: float | None) -> str:
    """95.2 -> 1 min 35 s."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(ratio: float | None) -> str:
    return DASH if ratio is None else f"{(ratio - 1) * 100:+.1f}%".replace("-", MINUS)


def reach_text(reach: Reach | None, unit: str) -> str:
    """What it took; 'over ...' where a run never got there."""
    if reach is None or reach.mean is None:
        return DASH
    value = duration(reach.mean) if unit == "s" else quantity(reach.mean)
    if not reach.censored:
        return value
    total = len(reach.reached) + len(reach.limits)
    return f"over {value}" + ("" if not reach.reached else f" ({len(reach.reached)} of {total} got there)")


def factor_text(reach: Reach | None) -> str:
    if reach is None or reach.factor is None:
        return DASH
    return f"{'under ' if reach.censored else ''}{reach.factor:.2f}×"


def verdict(cell: CellResult, analysis: Analysis) -> str:
    """One of: baseline, helps, hurts, no difference shown, no claim, identical, diverged, no result."""
    if cell.name == analysis.reference:
        return "baseline"
    if cell.effect is None:
        return "diverged" if cell.diverged and not cell.values else "no result"
    if cell.effect.identical:
        return "identical"
    if cell.effect.method == "descriptive":
        return "no claim"
    if cell.p_holm is None or cell.p_holm > st.ALPHA:
        return "no difference shown"
    return "helps" if analysis.measure.is_better(cell.effect.mean) else "hurts"


def sentence(cell: CellResult, analysis: Analysis) -> str:
    """The verdict in one sentence, without the cell's name."""
    word = verdict(cell, analysis)
    if word == "baseline":
        return f"the reference: {cell.measure.name} {_mean_sd(cell)}."
    if word == "diverged":
        return f"diverged in {len(cell.diverged)} of {_runs(cell.done)} that finished; no effect can be given."
    if word == "no result":
        return _no_result(cell, analysis)
    effect = cell.effect
    assert effect is not None
    if word == "identical":
        text = "identical to the baseline in every digit: it changed nothing; check that its settings reach the trainer"
    elif word == "no claim":
        text = f"{_direction(effect, cell)} ({ONE_SEED})"
    else:
        text = f"{word}: {_direction(effect, cell)} ({_evidence(cell, analysis)})"
        text += "; more seeds may show it" if _lost_to_correction(cell) else ""
    return f"{text}{_caveat(cell)}."


def _lost_to_correction(cell: CellResult) -> bool:
    """Significant alone, not as one of the family."""
    p = cell.effect.p if cell.effect else None
    return cell.p_holm is not None and p is not None and p <= st.ALPHA < cell.p_holm


def _direction(effect: Effect, cell: CellResult) -> str:
    size = f"{abs(effect.mean):.4f}"
    way = "lower" if effect.mean < 0 else "higher"
    return f"{cell.measure.name} {size}{cell.measure.short_unit} {way} than the baseline's"


def _evidence(cell: CellResult, analysis: Analysis) -> str:
    effect = cell.effect
    assert effect is not None and effect.low is not None and effect.high is not None
    how = f"{effect.n} paired seeds"
    name = "95% interval"
    if effect.method == "prediction":
        known = len(analysis.base.values) if analysis.base else 0
        how = f"{_runs(effect.n)} against the spread of {known} baseline seeds"
        name = "95% prediction interval"
    corrected = f"Holm p {_equals(cell.p_holm)}"
    if _lost_to_correction(cell):
        corrected = f"p {_equals(effect.p)}, but {p_text(cell.p_holm)} corrected for {analysis.family} comparisons"
    return f"{name} {interval(effect)}, {corrected}, {how}"


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _caveat(cell: CellResult) -> str:
    """What was left out of the effect, said every time."""
    parts, total = [], _runs(len(cell.runs))
    if cell.diverged:
        parts.append(f"{len(cell.diverged)} of {total} diverged and {_be(len(cell.diverged))} not in it")
    strayed = _strayed(cell)
    if strayed:
        parts.append(f"{strayed} of {total} ran with other settings and {_be(strayed)} not in it")
    lost = len(cell.runs) - cell.done
    if lost:
        parts.append(f"{lost} of {total} without a result")
    return "; " + "; ".join(parts) if parts else ""


def _no_result(cell: CellResult, analysis: Analysis) -> str:
    if cell.values:
        return f"no comparison: {analysis.reference or 'the baseline'} has no usable run."
    states = Counter(run.state for run in cell.runs)
    for word, count in (("diverged", len(cell.diverged)), ("with other settings", _strayed(cell))):
        states[word] += count
        states["done"] -= count
    return "no result: " + ", ".join(f"{n} {state}" for state, n in states.items() if n > 0) + "."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _strayed(cell: CellResult) -> int:
    """Finished runs whose configuration is not what the cell asked for."""
    return sum(run.finished and not run.diverged and bool(run.wrong_overrides) for run in cell.runs)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _mean_sd(cell: CellResult) -> str:
    if cell.mean is None:
        return "not known"
    unit = f" {cell.measure.unit}" if cell.measure.unit else ""
    if cell.sd is None:
        return f"{cell.mean:.4f}{unit} ({ONE_SEED})"
    return f"{cell.mean:.4f}{unit}, seed SD {cell.sd:.4f}, {len(cell.values)} seeds{_caveat(cell)}"


def contrast_sentence(contrast: Contrast, measure: Measure, worse: str, better: str, zero: str) -> str:
    """Words for a contrast: `better` or `worse` for one that is shown, `zero` for neither."""
    if contrast.effect is None:
        return "no result: runs are missing"
    if contrast.p_holm is None:
        return ONE_SEED
    if contrast.p_holm > st.ALPHA:
        return zero
    return better if measure.is_better(contrast.effect.mean) else worse


def flags(cell: CellResult, analysis: Analysis) -> list[str]:
    """What a reader must know before comparing this cell with the baseline."""
    base = analysis.base
    found: list[str] = []
    if base is None or cell is base:
        return found
    if cell.parameters and base.parameters and abs(cell.parameters / base.parameters - 1) > MATCHED:
        found.append(f"not parameter-matched ({percent(cell.parameters / base.parameters)} parameters)")
    if cell.kind in ("schedule", "data", "mixed"):
        found.append(
            {"schedule": "changes the schedule, not the model", "data": "changes the data"}.get(
                cell.kind, "changes more than the model"
            )
        )
    if cell.read_off:
        name = cell.measure.name
        found.append(f"trained on another number of tokens: {name} read off the curve at the smaller one")
    if cell.diverged:
        found.append(f"diverged: seed {', '.join(map(str, cell.diverged))}")
    wrong = sorted({key for run in cell.runs for key in run.wrong_overrides})
    if wrong:
        found.append(f"config.json does not hold the cell's {', '.join(wrong)}")
    return found


def notes(analysis: Analysis) -> list[str]:
    """Warnings about the study as a whole, the gravest first."""
    study, found = analysis.study, []
    wrong = sorted({r.cell for r in study.runs if r.wrong_overrides})
    if wrong:
        found.append(f"Settings did not reach the trainer in {_list(wrong)}: these cells are not what their name says.")
    same = [c.name for c in analysis.compared if c.effect and c.effect.identical]
    if same:
        found.append(f"Identical to the baseline in every digit: {_list(same)}. Do their settings reach the trainer?")
    base = analysis.base
    if base is not None and base.features:
        found.append(f"The design has no cell without features; effects are differences from {base.name}.")
    missing = [run for run in study.runs if not run.finished]
    if missing:
        found.append(f"{len(missing)} of {_runs(len(study.runs))} have no result yet; see run health.")
    found += _measures(analysis) + _doubtful_rows(study.runs)
    lost = [run for run in study.runs if run.diverged]
    if lost:
        names = _list([f"{r.cell} seed {r.seed}" for r in lost])
        found.append(f"Diverged, shown but in no mean and no interval: {names}.")
    altered = [f"{run.id}: {run.altered}" for run in study.runs if run.altered]
    if altered:
        found.append(f"Curves are not as their runs wrote them, run these again with submit --retry: {_list(altered)}.")
    early = [run for run in study.runs if run.summary.get("stopped_early")]
    if early:
        found.append(f"{_runs(len(early))} ended by early stopping, as the settings ask, and count as finished.")
    if analysis.single_seed:
        found.append(f"Every effect here is {ONE_SEED}. Two or more seeds give intervals.")
    if analysis.main_effects and analysis.family:
        found.append(
            "Full factorial design: the main effects use every run and say more than the single cells, which are "
            f"corrected for {analysis.family} comparisons."
        )
    return found + _arms(analysis) + _unlike(analysis)


def _doubtful_rows(runs: Sequence[RunRecord]) -> list[str]:
    """Notes on what commands print that may not have been read as it was meant."""
    found = []
    bad = sum(int(run.number("unreadable_numbers") or 0) for run in runs)
    if bad:
        found.append(f"{bad} values or lines of the metrics could not be read as numbers and were left out.")
    again = [run.id for run in runs if run.number("steps_began_again")]
    if again:
        found.append(
            f"Steps began again from the first one in {_list(again)}, so later rows replaced earlier ones. If each "
            "epoch counts its own steps, name the epoch too: (?P<epoch>\\d+), or a column `epoch`; after a resume, "
            "print the step of the whole run."
        )
    repeated = [r.id for r in runs if (r.number("steps_repeated") or 0) > REPEATED * max(r.curve.rows, 1)]
    if repeated:
        found.append(
            f"Steps have more than one loss in {_list(repeated)}, of which the last counts. If several processes "
            "print, let rank 0 print alone, or begin each line with [rank0]:."
        )
    return found


def _measures(analysis: Analysis) -> list[str]:
    """Notes on runs whose final value is of another column than the study compares."""
    column = analysis.study.measure.column
    finished = [run for run in analysis.study.runs if run.finished]
    other = [run for run in finished if not run.has_measure]
    found = []
    if other:
        found.append(
            f"{_runs(len(other))} ended before `metrics.compare` was {column} and cannot be compared: "
            f"{_list([run.id for run in other])}. Run them again with `submit --rerun RUN`."
        )
    training = [run for run in finished if run.has_measure and run.measure == "loss" != column]
    if training and len(training) == len(finished):
        found.append(
            "No held-out loss was reported: the headline is the mean training loss over the last tenth of the steps."
        )
    elif training:
        names = _list([run.id for run in training])
        found.append(
            f"No held-out loss, so the training loss instead, which cannot be compared with the others: {names}."
        )
    return found


def _arms(analysis: Analysis) -> list[str]:
    schedule = [c.name for c in analysis.compared if c.kind == "schedule"]
    model = [c.name for c in analysis.compared if c.kind == "model"]
    if not schedule or not model:
        return []
    return [
        f"Arms differ in kind: {_list(schedule)} change the schedule, {_list(model)} the model. A schedule needs its "
        "own peak learning rate; at the baseline's it can look useless or harmful when it is not."
    ]


def _unlike(analysis: Analysis) -> list[str]:
    """Things that should be equal in all finished runs, and what it means that they are not."""
    finished = [run for run in analysis.study.runs if run.finished]
    usable = [run for run in finished if run.usable]
    checks: Sequence[tuple[list[RunRecord], str, str]] = (
        (usable, "tokens", "Cells trained on different numbers of tokens; the headline compares at the smaller one."),
        (usable, "val_tokens", "The held-out sets differ in size: the runs are not measured on the same text."),
        (finished, "data_fingerprint", "The runs read different data (data fingerprints differ): not comparable."),
        (finished, "device", "The runs used different devices: times are not comparable."),
    )
    found = [text for runs, key, text in checks if len({str(r.summary[key]) for r in runs if key in r.summary}) > 1]
    if len({str(run.setting("data.tokenizer")) for run in finished if run.config}) > 1:
        found.append(f"The runs use different tokenizers: their {analysis.measure.name} is not comparable.")
    return found


def _list(names: Sequence[str]) -> str:
    """a, b and c; long lists are cut with their count."""
    shown = list(names[:8]) + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
