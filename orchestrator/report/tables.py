"""Tables for further use: summary.csv (one row per run), comparison.csv (one row per cell), comparison.tex."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import formatting, heldout_text, verdicts, wording
from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord
    from ablatrix.orchestrator.report.statistics import Effect, Reach
    from ablatrix.orchestrator.study.metric import Measure

VALUE = "val_nll"  # key of the measure in a row; its column has the measure's own name
NUMBERS = (
    "iters",
    "max_iters",
    "tokens",
    "seconds",
    "initial_loss",
    "final_loss",
    VALUE,
    "val_tokens",
    "peak_memory_bytes",
)


def summary(analysis: Analysis) -> str:
    """Return one row per run of the study, finished or not."""
    return _csv(map(_run, analysis.whole.runs), analysis.measure)


def _run(run: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.id, "cell": run.cell, "seed": run.seed, "state": run.state, "reason": run.reason}
    row |= {"diverged": _yes(run.diverged) if run.finished else None, "compared": _yes(run.usable)}
    row |= {name: run.value if name == VALUE else run.summary.get(name) for name in NUMBERS}
    row |= {"parameters": run.parameters, "flops_per_token": run.flops_per_token}
    row |= {name: run.summary.get(name) for name in ("device", "fingerprint", "data_fingerprint")}
    row["skipped_documents"] = sum(run.skipped.values())
    row["overrides"] = json.dumps(run.overrides, sort_keys=True)
    return row


def _heads(columns: Collection[str], measure: Measure) -> list[str]:
    """Return the names of columns, with the measure's own name in place of `val_nll`."""
    key = measure.key if measure.key == VALUE or measure.key not in columns else f"final_{measure.key}"
    return [key + name.removeprefix(VALUE) if name.startswith(VALUE) else name for name in columns]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def comparison(analysis: Analysis) -> str:
    """Return one row per cell of the study at each size, with all measures."""
    rows = [
        ({"size": size} if analysis.ladder else {}) | _cell(cell, found)
        for size, found in analysis.by_size.items()
        for cell in found.cells.values()
    ]
    return _csv(rows, analysis.measure)


def comparisons(analyses: Sequence[Analysis]) -> str:
    """Return what `comparison` does for several studies, with the study in the first column."""
    rows = [{"study": a.study.name, **_cell(cell, a)} for a in analyses for cell in a.cells.values()]
    return _csv(rows, analyses[0].measure)


def _cell(cell: CellResult, analysis: Analysis) -> dict[str, Any]:
    base, effect = analysis.base, cell.effect
    target = "baseline_loss" if analysis.measure.is_loss else f"baseline_{analysis.measure.key}"
    return {
        "cell": cell.name,
        "features": "+".join(cell.features),
        "kind": cell.kind,
        "runs": len(cell.runs),
        "finished": cell.done,
        "diverged": len(cell.diverged),
        "val_nll": cell.mean,
        "val_nll_sd": cell.sd,
        "val_nll_at_budget": cell.mean_at_budget,
        **_effect("effect", effect),
        "effect_joint_low": effect.joint_low if effect else None,
        "effect_joint_high": effect.joint_high if effect else None,
        "p": effect.p if effect else None,
        "p_joint": effect.p_joint if effect else None,
        "runs_in_mean": effect.n if effect else None,
        "method": effect.method if effect else None,
        "verdict": verdicts.word(cell, analysis),
        **_effect("effect_equal_flops", cell.equal_flops),
        **_effect("effect_equal_seconds", cell.equal_seconds),
        **_reach(f"tokens_to_{target}", cell.tokens_to),
        **_reach(f"seconds_to_{target}", cell.seconds_to),
        **heldout_text.columns(cell),
        "parameters": cell.parameters,
        "parameters_ratio": _ratio(cell.parameters, base.parameters if base else None),
        "flops_per_token": cell.flops_per_token,
        "tokens": cell.average("tokens"),
        "seconds": cell.seconds_per_run,
        "tokens_per_second": cell.tokens_per_second,
        "step_time_ratio": analysis.times.ratio(cell.name),
        "gpu_hours": cell.hours.gpu or None,
        "cpu_hours": cell.hours.cpu or None,
        "peak_memory_bytes": cell.average("peak_memory_bytes"),
        "flags": "; ".join(verdicts.flags(cell, analysis)),
    }


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine and theirs else None


def _effect(name: str, effect: Effect | None) -> dict[str, float | None]:
    values = (effect.mean, effect.low, effect.high) if effect else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _reach(name: str, reach: Reach | None) -> dict[str, Any]:
    values = (reach.mean, len(reach.limits), reach.factor) if reach else (None, None, None)
    return dict(zip((name, f"{name}_censored", f"{name}_factor"), values, strict=True))


def _csv(rows: Iterable[Mapping[str, Any]], measure: Measure) -> str:
    """Return rows, which all have the same columns, as CSV; None is an empty cell, floats keep all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(_heads(row.keys(), measure))
        writer.writerow(map(_cell_text, row.values()))
    return text.getvalue()


_NUMBER = re.compile(r" *[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf(inity)?|nan) *", re.ASCII | re.IGNORECASE)


def _cell_text(value: Any) -> Any:
    """Escape text that a spreadsheet would evaluate as a formula; leave numbers and numeric text unchanged."""
    if not isinstance(value, str):
        return value
    shown = visible(value)
    formula = shown.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(value)
    return "'" + shown if formula else shown


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{c: rf"\{c}" for c in "&%$#_{}"},
        **{c: f"{{{c}}}" for c in "[]*"},  # after the end of a row they would be parsed as its argument
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        formatting.MINUS: "$-$",
        "\N{EM DASH}": "---",
        "±": "$\\pm$",
    }
)


def tex(value: str) -> str:
    """Return text escaped for LaTeX."""
    return visible(" ".join(value.split())).translate(_TEX)


def latex(analysis: Analysis) -> str:
    """Return the comparison as a booktabs table, to be \\input into a paper."""
    rows = []
    for name, cell, found in wording.every_cell(analysis):
        text = wording.cell_text(cell, found)
        effect = text.effect if text.interval == formatting.DASH else f"{text.effect} ({text.interval})"
        rows.append(map(tex, (name, effect, text.verdict, text.value, text.runs, text.p)))
    p = analysis.p_name.replace("p", "$p$", 1)
    head = ("cell", f"effect ({tex(analysis.interval_name)})", "verdict", tex(analysis.measure.name), "runs", p)
    top, *lines = [" & ".join(row) + r" \\" for row in (head, *rows)]
    body = "\n".join([r"\toprule", top, r"\midrule", *lines, r"\bottomrule"])
    return f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{lrlrrr}}\n{body}\n\\end{{tabular}}\n"
