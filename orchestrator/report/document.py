"""Analysis -> the sections of the report, as content."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence

from ablatrix.orchestrator.report import context_lengths as contexts
from ablatrix.orchestrator.report import methods, wording
from ablatrix.orchestrator.report.analysis import Analysis, Contrast
from ablatrix.orchestrator.report.collect import RunRecord
from ablatrix.orchestrator.report.content import (
    Block,
    Code,
    Folded,
    Heading,
    Health,
    Notes,
    Row,
    Section,
    Table,
    Verdict,
    Verdicts,
)
from ablatrix.orchestrator.report.corpus_notes import corpus_notes
from ablatrix.orchestrator.report.figure_data import Figure
from ablatrix.orchestrator.report.wording import (
    DASH,
    duration,
    factor_text,
    interval,
    p_text,
    percent,
    plain,
    quantity,
    reach_text,
    signed,
    with_margin,
)

MOST_SENTENCES = 40


def compose(analysis: Analysis, figures: Sequence[Figure]) -> list[Section]:
    """Return all sections that have content, run health first."""
    pictures = {figure.name: figure for figure in figures}
    made = [
        about(analysis),
        health(analysis),
        Section("verdict", "Verdict", [*verdicts(analysis), *_some(pictures.get("effects")), main_table(analysis)]),
        budgets(analysis),
        _curves(pictures),
        combined(analysis, pictures),
        domains(analysis),
        context_lengths(analysis, pictures),
        costs(analysis, pictures),
        Section("methods", "Methods", methods.paragraphs(analysis)),
        repeat(analysis),
    ]
    return [section for section in made if section and section.blocks]


def subtitle(analysis: Analysis) -> str:
    """One line under the title: what the study is and how far it got."""
    runs = analysis.study.runs
    done = sum(run.finished for run in runs)
    source = f"{analysis.study.file}: " if analysis.study.file else ""
    return f"{source}{len(analysis.cells)} cells, {len(runs)} runs, {done} finished"


def about(analysis: Analysis) -> Section:
    """What the experiment file says the study is for."""
    info = analysis.study.info
    heading = ", ".join(info[key] for key in ("name", "date") if info.get(key))
    said = [heading, info.get("description", ""), f"Hypothesis: {info['hypothesis']}" if info.get("hypothesis") else ""]
    return Section("about", "The experiment", [text for text in said if text])


def _some(block: Block | None) -> list[Block]:
    return [block] if block else []


def health(analysis: Analysis) -> Section:
    """States of all runs, warnings, and every run that has no usable result with its reason."""
    runs = analysis.study.runs
    states = Counter("diverged" if run.diverged else run.state for run in runs)
    first = [("runs", len(runs)), *sorted(states.items(), key=lambda item: (item[0] != "done", item[0]))]
    blocks: list[Block] = [Health(first), *([Notes(n)] if (n := wording.notes(analysis)) else [])]
    bad = [run for run in runs if not run.usable]
    if bad:
        rows = [
            Row(
                [
                    run.cell,
                    str(run.seed),
                    "diverged" if run.diverged else run.state,
                    _why(run),
                    _progress(run),
                    run.id,
                ]
            )
            for run in bad
        ]
        blocks.append(Table(["cell", "seed", "state", "reason", "last step", "run"], rows, (0, 2, 3, 5), (3,)))
    blocks += corpus_notes(runs)
    return Section("health", "Run health", blocks)


def _why(run: RunRecord) -> str:
    """Why a run has no usable result, as far as is known."""
    if run.wrong_overrides and not run.reason:
        return f"config.json does not hold its {', '.join(run.wrong_overrides)}"
    return run.reason or DASH


def _progress(run: RunRecord) -> str:
    total = run.setting("trainer.max_iters")
    if not run.curve.rows:
        return DASH
    return f"{run.curve.last_iter:.0f}" + (f" of {total}" if total else "")


def verdicts(analysis: Analysis) -> list[Block]:
    """One sentence a cell; in a large study the cells of which nothing can be said are folded away."""
    said = [
        Verdict(c.name, wording.verdict(c, analysis), wording.sentence(c, analysis), wording.flags(c, analysis))
        for c in analysis.cells.values()
    ]
    quiet = [v for v in said if v.word in ("no difference shown", "no claim")]
    if len(said) <= MOST_SENTENCES or not quiet:
        return [Verdicts(said)]
    loud = [v for v in said if v not in quiet]
    return [Verdicts(loud), Folded(f"{len(quiet)} cells without a difference shown", [Verdicts(quiet)])]


def main_table(analysis: Analysis) -> Table:
    head = [
        "cell",
        "runs",
        analysis.measure.name,
        "seed SD",
        "effect",
        "95% interval",
        "p",
        "p (Holm)",
        *(["perplexity"] if analysis.measure.is_nll else []),
        "parameters",
        "FLOPs/token",
    ]
    base = analysis.base
    rows = []
    for cell in analysis.cells.values():
        effect = cell.effect
        ratio = cell.parameters / base.parameters if base and base.parameters and cell.parameters else None
        parameters = quantity(cell.parameters) + (f" ({percent(ratio)})" if ratio and abs(ratio - 1) > 5e-4 else "")
        cells = [
            cell.name,
            f"{cell.done}/{len(cell.runs)}",
            plain(cell.mean),
            plain(cell.sd),
            signed(effect.mean if effect else None),
            interval(effect),
            p_text(effect.p if effect else None),
            p_text(cell.p_holm),
            *([percent(math.exp(effect.mean)) if effect else DASH] if analysis.measure.is_nll else []),
            parameters,
            quantity(cell.flops_per_token),
        ]
        rows.append(Row(cells, cell is base))
    return Table(head, rows)


def budgets(analysis: Analysis) -> Section | None:
    """The effect at equal tokens, compute and time, and what it takes to reach the baseline's loss."""
    if not any(c.effect for c in analysis.compared):
        return None
    name = analysis.measure.name
    head = ["cell", f"equal {analysis.budget}", "equal FLOPs", "equal time"]
    rows = [
        Row([c.name, *(with_margin(e) for e in (c.effect, c.equal_flops, c.equal_seconds))]) for c in analysis.compared
    ]
    speed = [
        Row(
            [
                c.name,
                reach_text(c.tokens_to, ""),
                factor_text(c.tokens_to),
                reach_text(c.seconds_to, "s"),
                factor_text(c.seconds_to),
            ],
            c is analysis.base,
        )
        for c in analysis.cells.values()
    ]
    return Section(
        "budgets",
        "At equal cost",
        [
            f"Effect on the {name} at a matched budget of {analysis.budget} (the headline), training FLOPs or training "
            "time. Where one cell costs more, the last two are interpolated on its curve, at a point where its "
            "learning-rate schedule has not ended. Confidence intervals (95%) are pointwise.",
            Table(head, rows),
            Heading(f"To the baseline's final {'loss' if analysis.measure.is_loss else name}"),
            f"Tokens and time until the {name} first reaches the baseline's final value, by interpolation between "
            "evaluations; mean over seeds. Speed-up: baseline cost divided by cell cost; above 1 is faster. “over”: a "
            "run never reached that value and counts with all it spent.",
            Table(["cell", "tokens", "speed-up", "time", "speed-up"], speed),
        ],
    )


def _curves(pictures: dict[str, Figure]) -> Section:
    blocks: list[Block] = _some(pictures.get("differences"))
    if "loss_curves" in pictures and pictures["loss_curves"].panels:
        blocks.append(Folded("All curves in one plot", [pictures["loss_curves"]]))
    blocks += _some(pictures.get("schedules"))
    return Section("curves", "Curves", blocks)


def combined(analysis: Analysis, pictures: dict[str, Figure]) -> Section | None:
    """Main effects, interactions, leave-one-out: whichever the design allows."""
    blocks: list[Block] = []
    if analysis.main_effects:
        blocks += [
            Heading("Main effects"),
            "Each feature's effect averaged over all combinations of the others (full factorial design).",
            *_some(pictures.get("main_effects")),
            _contrasts(analysis, analysis.main_effects, "hurts", "helps", "no difference shown"),
        ]
    if analysis.left_out:
        blocks += [
            Heading("With everything else on"),
            "All features on, minus all but this one: what the feature adds in the company of the others.",
            _contrasts(analysis, analysis.left_out, "hurts", "helps", "no difference shown"),
        ]
    if any(c.effect for c in analysis.interactions):
        blocks += [
            Heading("Interactions"),
            *_some(pictures.get("interactions")),
            _contrasts(
                analysis,
                analysis.interactions,
                "worse than the sum",
                "better than the sum",
                "no departure from the sum shown",
            ),
        ]
    return Section("combinations", "Combinations", blocks) if blocks else None


def _contrasts(analysis: Analysis, contrasts: Sequence[Contrast], worse: str, better: str, zero: str) -> Table:
    rows = []
    for c in contrasts:
        words = wording.contrast_sentence(c, analysis.measure, worse, better, zero)
        words += f" ({c.missing} comparisons lack a run)" if c.missing else ""
        e = c.effect
        rows.append(
            Row(
                [
                    c.name,
                    signed(e.mean if e else None),
                    interval(e),
                    p_text(e.p if e else None),
                    p_text(c.p_holm),
                    words,
                ]
            )
        )
    return Table(["", "effect", "95% interval", "p", "p (Holm)", "reading"], rows, (0, 5))


def domains(analysis: Analysis) -> Section | None:
    """Held-out NLL per domain with each cell's effect there; a star marks what survives the correction."""
    if not analysis.domains:
        return None
    names = list(analysis.domains[0].effects)
    rows = []
    for row in analysis.domains:
        found = [row.effects[name] for name in names]
        rows.append(Row([row.domain, quantity(row.tokens), plain(row.baseline), *(_starred(c) for c in found)]))
    text = (
        "Held-out NLL of the baseline by domain, and each cell's effect there with its 95% interval. A star marks an "
        "effect that stands after Holm's correction over this whole table."
    )
    return Section("domains", "By domain", [text, Table(["domain", "tokens", analysis.reference or "", *names], rows)])


def context_lengths(analysis: Analysis, pictures: dict[str, Figure]) -> Section | None:
    """Held-out NLL of every cell at each context length, and the effect against the reference there."""
    found = contexts.rows(analysis)
    if not found:
        return None
    names = [name for name in [analysis.reference] if name] + [c.name for c in analysis.compared]
    table = [Row([str(r.length), quantity(r.tokens), *(_at_length(r, name) for name in names)]) for r in found]
    trained = contexts.trained_length(analysis.base)
    text = (
        f"Held-out NLL after training with windows of {trained or 'one length'}, the same tokens scored at each length "
        "of context, mean over seeds; in brackets the effect at that length with its 95% interval, a star where it "
        "stands after Holm's correction over this whole table."
    )
    reasons = {why for row in found for why in row.out_of_reach.values()}
    text += f" “cannot”: {'; '.join(sorted(reasons))}." if reasons else ""
    blocks = [text, Table(["context", "tokens", *names], table), *_some(pictures.get("context_lengths"))]
    return Section("contexts", "By context length", blocks)


def _at_length(row: contexts.ContextRow, name: str) -> str:
    if name not in row.means:
        return "cannot" if name in row.out_of_reach else DASH
    contrast = row.effects.get(name)
    return plain(row.means[name]) + (f" ({_starred(contrast)})" if contrast and contrast.effect else "")


def _starred(contrast: Contrast) -> str:
    star = " *" if contrast.p_holm is not None and contrast.p_holm <= 0.05 else ""
    return with_margin(contrast.effect) + star


def costs(analysis: Analysis, pictures: dict[str, Figure]) -> Section:
    base = analysis.base
    rows = []
    for cell in analysis.cells.values():
        mine, theirs = cell.tokens_per_second, base.tokens_per_second if base else None
        memory = cell.average("peak_memory_bytes")
        cells = [
            cell.name,
            quantity(cell.parameters),
            quantity(cell.flops_per_token),
            quantity(cell.average("tokens")),
            duration(cell.average("seconds")),
            quantity(mine),
            f"{mine / theirs:.2f}×" if mine and theirs else DASH,
            quantity(memory, "B"),
            duration(sum(r.number("seconds") or 0.0 for r in cell.runs)),
        ]
        rows.append(Row(cells, cell is base))
    head = [
        "cell",
        "parameters",
        "FLOPs/token",
        "tokens",
        "time per run",
        "tokens/s",
        "throughput",
        "peak memory",
        "time, all runs",
    ]
    return Section("cost", "Cost", [Table(head, rows), *_some(pictures.get("cost"))])


def repeat(analysis: Analysis) -> Section:
    """One command a run, and every run with its numbers."""
    study = analysis.study
    commands = []
    for run in study.runs:
        if run.command:
            commands.append(f"sh {shlex.quote((study.folder / run.id / 'args.txt').as_posix())}")
            continue
        words = ["python", "-m", "trainer", "--config", (study.folder / run.id / "config.json").as_posix()]
        words += [f"--system.work_dir=repeat/{run.id}", "--trainer.resume=none"]
        commands.append(shlex.join(words))
    rows = [
        Row(
            [
                run.cell,
                str(run.seed),
                "diverged" if run.diverged else run.state,
                plain(run.value),
                _progress(run),
                run.id,
            ],
            run.cell == analysis.reference,
        )
        for run in study.runs
    ]
    text = (
        "Each command repeats one run from its resolved configuration, into a new folder. On a CPU the loss curve "
        "comes out the same to the last bit, clock columns apart."
    )
    if any(run.command for run in study.runs):
        text = "Each command starts one run's command again by hand, with its values filled in, into the same folder."
    table = Table(["cell", "seed", "state", analysis.measure.name, "last step", "run"], rows, (0, 2, 5))
    return Section(
        "repeat",
        "Every run, and how to repeat it",
        [text, Folded(f"Commands ({len(commands)})", [Code("\n".join(commands))]), Folded("All runs", [table])],
    )
