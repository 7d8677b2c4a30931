"""The sections of a study's report, as content for the templates."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from ablatrix.orchestrator.report import (
    generated_text,
    heldout_text,
    methods,
    sizes_section,
    tuning_text,
    verdicts,
    waterfall,
)
from ablatrix.orchestrator.report.content import (
    Block,
    Code,
    Folded,
    Heading,
    Health,
    Link,
    Notes,
    Row,
    Section,
    Table,
    Verdict,
    Verdicts,
)
from ablatrix.orchestrator.report.corpus_notes import corpus_notes
from ablatrix.orchestrator.report.forests import MANY_CELLS, ordered
from ablatrix.orchestrator.report.formatting import (
    DASH,
    duration,
    factor_text,
    join_names,
    p_text,
    percent,
    plain,
    quantity,
    reach_text,
    signed,
    span_text,
    times,
    with_margin,
)
from ablatrix.orchestrator.report.wording import aa_sentence, cell_text
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord
    from ablatrix.orchestrator.report.contrasts import MarginalMean
    from ablatrix.orchestrator.report.figure_data import Figure

MOST_LISTED = 1000  # runs that get a row and a command each on the page

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]


def compose(analysis: Analysis, figures: Sequence[Figure], warnings: Sequence[str]) -> list[Section]:
    """Return all sections that have content, starting with the verdict. warnings: the notes on the analysis."""
    drawn = {figure.name: figure for figure in figures}
    made = [
        _section("verdict", "Verdict", verdict(analysis, drawn)),
        _section("scale", "Across sizes", sizes_section.blocks(analysis, drawn.get(sizes_section.NAME))),
        _section("about", "The experiment", about(analysis)),
        _section("health", "Run health", health(analysis, warnings)),
        _section("aa", "A/A check", aa(analysis)),
        _section("budgets", "At a matched budget", budgets(analysis)),
        _section("tuning", "Tuned arms", tuning_text.blocks(analysis, _pick(drawn, "tuning"))),
        _section("curves", "Curves", [*curves(drawn), *generated_text.side_by_side(_listed(analysis))]),
        _section("combinations", "Combinations", combinations(analysis, drawn)),
        _section("attribution", "Which feature accounts for what", attribution(analysis, drawn)),
        _section("heldout", "The held-out text", heldout_text.over_documents(analysis)),
        _section("domains", "By domain", heldout_text.domains(analysis)),
        _section("contexts", "By context length", heldout_text.context_lengths(analysis, drawn.get("context_lengths"))),
        _section("cost", "Cost", [*costs(analysis), *_pick(drawn, "cost")]),
        _section("methods", "Methods", methods.paragraphs(analysis)),
        _section("repeat", "All runs, and how to repeat them", repeat(analysis)),
    ]
    return [section for section in made if section]


def _section(name: str, title: str, blocks: Sequence[Block]) -> Section | None:
    return Section(name, title, blocks) if blocks else None


def _pick(drawn: Mapping[str, Figure], name: str) -> list[Block]:
    return [drawn[name]] if name in drawn else []


def _table(
    items: Iterable[T], columns: Columns[T], left: Sequence[int] = (0,), wide: Sequence[int] = (), base: object = None
) -> Table:
    """Return a table with a row per item. columns: header -> function from an item to its text."""
    rows = [Row([text(item) for text in columns.values()], item is base) for item in items]
    return Table(list(columns), rows, left, wide)


def subtitle(analysis: Analysis) -> str:
    """Return the line under the title: file, size and progress of the study."""
    runs = analysis.whole.runs
    source = f"{analysis.study.file}: " if analysis.study.file else ""
    done = sum(run.finished for run in runs)
    sizes = f" at each of {len(analysis.by_size)} sizes" if analysis.ladder else ""
    return f"{source}{count(len(analysis.cells), 'cell')}{sizes}, {count(len(runs), 'run')}, {done} finished"


def about(analysis: Analysis) -> list[str]:
    """Return what the experiment file says about the study."""
    info = analysis.study.info
    heading = ", ".join(info[key] for key in ("name", "date") if info.get(key))
    hypothesis = f"Hypothesis: {info['hypothesis']}" if info.get("hypothesis") else ""
    return [text for text in (heading, info.get("description", ""), hypothesis) if text]


def health(analysis: Analysis, warnings: Sequence[str]) -> list[Block]:
    """Return the states of all runs, warnings, and every run without a usable result, with the reason."""
    runs = analysis.whole.runs
    states = sorted(Counter(map(_state, runs)).items(), key=lambda item: (item[0] != "done", item[0]))
    blocks: list[Block] = [Health([("runs", len(runs)), *states])]
    if warnings:
        blocks.append(Notes(warnings))
    if bad := [run for run in runs if not run.usable]:
        columns: Columns[RunRecord] = {
            "cell": lambda run: run.cell,
            "seed": lambda run: str(run.seed),
            "state": _state,
            "reason": _reason,
            "last step": _progress,
            "run": _link,
        }
        blocks.append(_table(bad, columns, left=(0, 2, 3, 5), wide=(3,)))
    return [*blocks, *corpus_notes(runs)]


def aa(analysis: Analysis) -> list[Block]:
    """Return the result of the A/A check, if the study has one."""
    if (found := aa_sentence(analysis)) == "":
        return []
    explained = (
        "The check trains the baseline again with different seeds: nothing that the study would call an effect should "
        "appear between the two. It is not one of the comparisons that verdicts are corrected for."
    )
    return [found, explained]


def _state(run: RunRecord) -> str:
    return "diverged" if run.diverged else run.state


def _reason(run: RunRecord) -> str:
    """Return why a run has no usable result, as far as known."""
    if run.wrong_overrides and not run.reason:
        return f"config.json lacks its {', '.join(run.wrong_overrides)}"
    return run.reason or DASH


def _progress(run: RunRecord) -> str:
    total = run.setting("trainer.max_iters")
    if not run.curve.rows:
        return DASH
    return f"{run.curve.last_iter:.0f}" + (f" of {total}" if total else "")


def verdict(analysis: Analysis, drawn: Mapping[str, Figure]) -> list[Block]:
    """Return the forest plot, a sentence per cell and the details, folded if there are many cells."""
    found = [
        Verdict(c.name, verdicts.word(c, analysis), verdicts.sentence(c, analysis), verdicts.flags(c, analysis))
        for c in _listed(analysis)
    ]
    sentences: Block = Verdicts(found)
    if len(found) >= MANY_CELLS or analysis.factorial:
        sentences = Folded(f"A sentence per cell ({len(found)})", [sentences])
    details = Folded("Standard deviations, p values and other details", [details_table(analysis)])
    main = [Heading("Main effects"), *_pick(drawn, "main_effects"), Heading("Cells")] if "main_effects" in drawn else []
    return [*main, *_pick(drawn, "effects"), sentences, details]


def _listed(analysis: Analysis) -> list[CellResult]:
    """Return all cells in the order of the forest plot."""
    return ([analysis.base] if analysis.base else []) + ordered(analysis)


def details_table(analysis: Analysis) -> Table:
    """Return a table of what the forest plot leaves out."""
    digits, listed = analysis.decimals, _listed(analysis)
    texts = {cell.name: cell_text(cell, analysis) for cell in listed}

    def paired(cell: CellResult) -> str:
        found = cell.effect.paired if cell.effect else None
        if found is None:
            return DASH
        return f"{span_text(found.low, found.high, digits)}, p {p_text(found.p_joint)}"

    columns: dict[str, Callable[[CellResult], str]] = {
        "cell": lambda cell: cell.name,
        "seed SD": lambda cell: plain(cell.sd, digits + 1),
        "pointwise 95% interval": lambda cell: texts[cell.name].pointwise,
        "p": lambda cell: p_text(cell.effect.p if cell.effect else None),
        **({analysis.p_name: lambda cell: texts[cell.name].p} if analysis.family > 1 else {}),
        "without pooling": paired,
        "without outliers": lambda cell: signed(cell.effect.without_outliers if cell.effect else None, digits),
        "perplexity": lambda cell: percent(math.exp(cell.effect.mean)) if cell.effect else DASH,
        "FLOPs/token": lambda cell: quantity(cell.flops_per_token),
    }
    if not analysis.measure.is_nll:
        del columns["perplexity"]
    made = _table(listed, columns, base=analysis.base)
    known = [i for i in range(len(made.head)) if i == 0 or any(row.cells[i] != DASH for row in made.rows)]
    rows = [Row([row.cells[i] for i in known], row.base) for row in made.rows]
    return Table([made.head[i] for i in known], rows)


def budgets(analysis: Analysis) -> list[Block]:
    """Return the effects at equal tokens, compute and time, and the cost of reaching the baseline's final value."""
    if not any(c.effect for c in analysis.compared):
        return []
    name, digits = analysis.measure.name, analysis.decimals
    effects: Columns[CellResult] = {
        "cell": lambda cell: cell.name,
        f"equal {analysis.budget}": lambda cell: with_margin(cell.effect, digits),
        "equal FLOPs": lambda cell: with_margin(cell.equal_flops, digits),
    }
    speed: Columns[CellResult] = {
        "cell": lambda cell: cell.name,
        "tokens": lambda cell: reach_text(cell.tokens_to, ""),
        "speed-up in tokens": lambda cell: factor_text(cell.tokens_to),
    }
    if not analysis.times.withheld:
        effects = {**effects, "equal time": lambda cell: with_margin(cell.equal_seconds, digits)}
        speed = {
            **speed,
            "time": lambda cell: reach_text(cell.seconds_to, "s"),
            "speed-up in time": lambda cell: factor_text(cell.seconds_to),
        }
    return [
        f"Effect on the {name} at a matched budget of {analysis.budget} (the headline), training FLOPs or training "
        "time. If one cell costs more, its value is interpolated on its curve, at a point where its learning-rate "
        "schedule has not ended. 95% confidence intervals are pointwise, not adjusted for multiple comparisons.",
        *_time_remark(analysis),
        _table(analysis.compared, effects),
        Heading(f"To the baseline's final {'loss' if analysis.measure.is_loss else name}"),
        f"Tokens and time until the {name} first reaches the baseline's final value, interpolated between "
        "evaluations; mean over seeds. Speed-up: baseline cost divided by cell cost; above 1 is faster. “over”: not "
        "every run reached that value; those that did not are counted at their full cost.",
        _table(analysis.cells.values(), speed, base=analysis.base),
    ]


def _time_remark(analysis: Analysis) -> list[Block]:
    """Return a sentence about how time was compared, or why it was not."""
    step = analysis.times
    if step.withheld:
        return [step.withheld]
    text = "Time: steps times the cell's seconds per step (lower quartile within each run, median over runs)."
    if step.controls:
        measured = join_names([f"{name} {ratio:.2f}" for name, ratio in step.controls.items()])
        text += f" Cells that compute what the baseline computes count as 1; measured: {measured}."
    if step.apart:
        text += f" No run on the baseline's hardware, so no time: {', '.join(step.apart)}."
    return [text]


def curves(drawn: Mapping[str, Figure]) -> list[Block]:
    """Return raw curves, differences during training, and schedules."""
    every = drawn.get("loss_curves")
    overlay = [every] if every and every.panels else []
    return [*overlay, *_pick(drawn, "differences"), *_pick(drawn, "schedules")]


def combinations(analysis: Analysis, drawn: Mapping[str, Figure]) -> list[Block]:
    """Return leave-one-out effects, interactions and marginal means, if the design has them."""
    found = [drawn[name] for name in ("left_out", "interactions") if name in drawn]
    return [*(block for figure in found for block in (Heading(figure.title), figure)), *marginal_means(analysis)]


def marginal_means(analysis: Analysis) -> list[Block]:
    """Return the mean at each level of each feature of a full factorial."""
    means, measure, digits = analysis.combinations.marginal_means, analysis.measure, analysis.decimals
    if not means:
        return []
    columns: Columns[MarginalMean] = {
        "feature": lambda mean: mean.factor,
        "level": lambda mean: "on" if mean.level == mean.factor else mean.level,
        measure.short_name: lambda mean: plain(mean.mean, digits),
        "95% interval": lambda mean: span_text(*mean.interval, digits, sign=False) if mean.interval else DASH,
    }
    text = (
        f"Mean {measure.label} over all combinations of the other features, adjusted for missing runs, at the compared "
        "budget. The pointwise 95% confidence interval excludes what a seed adds to all cells."
    )
    return [Heading("Marginal means"), text, _table(means, columns, left=(0, 1))]


def attribution(analysis: Analysis, drawn: Mapping[str, Figure]) -> list[Block]:
    """Return the effect of all features divided among them, as a figure and as a table."""
    table = waterfall.table(analysis)
    return [*_pick(drawn, "attribution"), table] if table else []


def costs(analysis: Analysis) -> list[Block]:
    """Return the hours of the study, and parameters, compute, time, throughput and memory of every cell."""
    columns: Columns[CellResult] = {
        "cell": lambda cell: cell.name,
        "parameters": lambda cell: quantity(cell.parameters),
        "FLOPs/token": lambda cell: quantity(cell.flops_per_token),
        "tokens": lambda cell: quantity(cell.average("tokens")),
        "peak memory": lambda cell: quantity(cell.average("peak_memory_bytes"), "B"),
        "all attempts": lambda cell: str(cell.hours),
    }
    if not analysis.times.withheld:
        columns = {
            **columns,
            "time per run": lambda cell: duration(cell.seconds_per_run),
            "tokens/s": lambda cell: quantity(cell.tokens_per_second),
            "step time": lambda cell: times(analysis.times.ratio(cell.name)),
        }
    shared = "; runs that shared a GPU at the same time count once" if analysis.hours.gpu else ""
    text = f"The study took {analysis.hours}: all attempts at all runs, including evaluations{shared}."
    withheld = [analysis.times.withheld] if analysis.times.withheld else []
    return [text, *withheld, _table(analysis.cells.values(), columns, base=analysis.base)]


def repeat(analysis: Analysis) -> list[Block]:
    """Return a command to repeat each run, and a table of all runs."""
    study = analysis.whole
    if len(study.runs) > MOST_LISTED:
        return [
            f"The {len(study.runs):,} runs are listed in summary.csv; args.txt in the folder of a run has its command."
        ]
    commands = [_repeat_command(study.folder / run.id, run) for run in study.runs]
    columns: Columns[RunRecord] = {
        "cell": lambda run: run.cell,
        "seed": lambda run: str(run.seed),
        "state": _state,
        analysis.measure.name: lambda run: plain(run.value, analysis.decimals),
        "last step": _progress,
        "run": _link,
    }
    text = (
        "Each command repeats a run from its resolved configuration, in a new folder. On a CPU the loss curve is "
        "bit-identical, except for the clock columns."
    )
    if any(run.command for run in study.runs):
        text = "Each command starts a run's own command again, with its values filled in, in the same folder."
    return [
        text,
        Folded(f"Commands ({len(commands)})", [Code("\n".join(commands))]),
        Folded("All runs", [_table(study.runs, columns, left=(0, 2, 5))]),
    ]


def _link(run: RunRecord) -> str:
    """Return the run's id as a link to its folder, which is next to the report's."""
    return Link(run.id, f"../{quote(run.id)}/")


def _repeat_command(folder: Path, run: RunRecord) -> str:
    if run.command:
        return f"sh {shlex.quote((folder / 'args.txt').as_posix())}"
    words = ["python", "-m", "ablatrix.trainer", "--config", (folder / "config.json").as_posix()]
    return shlex.join([*words, f"--system.work_dir=repeat/{run.id}", "--trainer.resume=none"])
