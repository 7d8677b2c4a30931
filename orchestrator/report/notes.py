"""Warnings about a study as a whole, the most serious first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import corpus_notes, documents, sequential, tuning_text, wording
from ablatrix.orchestrator.report.analysis import find_twins
from ablatrix.orchestrator.report.formatting import join_names
from ablatrix.orchestrator.report.verdicts import ONE_SEED
from ablatrix.orchestrator.status import diagnosis
from ablatrix.orchestrator.study import screening
from ablatrix.trainer.rundir import recorded_inputs
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.collect import RunRecord

BAD = ("failed", "lost", "cancelled")  # states that `submit --retry` reruns
MOST_REASONS = 3  # for failed runs
REPEATED = 0.5  # fraction of a run's rows; fewer repeated steps come from a progress bar


def notes(analysis: Analysis) -> list[str]:
    """Return all warnings; a warning about one size names it."""
    if analysis.ladder:
        found = {size: notes(one) for size, one in analysis.by_size.items()}
        common = [note for note in found[analysis.ladder.shown] if all(note in each for each in found.values())]
        return common + [f"{size}: {note}" for size, each in found.items() for note in each if note not in common]
    parts: Sequence[Callable[[Analysis], Iterator[str]]] = (
        _aa,
        _settings,
        _measures,
        _metrics_output,
        _runs,
        _noise,
        _design,
        tuning_text.notes,
        _differences,
        _corpus,
    )
    return [note for part in parts for note in part(analysis)]


def _aa(analysis: Analysis) -> Iterator[str]:
    """Yield the result of the A/A check if it failed."""
    if analysis.aa and analysis.aa.failed:
        yield wording.aa_sentence(analysis)


def _settings(analysis: Analysis) -> Iterator[str]:
    """Yield problems with the settings of cells, and what has not finished."""
    runs, base = analysis.study.runs, analysis.base
    if wrong := sorted({run.cell for run in runs if run.wrong_overrides}):
        yield f"Settings did not reach the trainer in {join_names(wrong)}: these runs are not compared."
    if same := [cell.name for cell in analysis.compared if cell.effect and cell.effect.identical]:
        yield f"Bit-identical to the baseline: {join_names(same)}. Check that their settings reach the trainer."
    for twins in find_twins([cell for cell in analysis.compared if cell.name not in same]):
        yield (
            f"Bit-identical to each other: {join_names(twins)}. Check that their settings reach the trainer; the same "
            "runs count several times in the noise."
        )
    if base is not None and base.features:
        yield f"The design has no cell without features; effects are differences from {base.name}."
    yield from _without_result(runs)


def _without_result(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield how many runs failed, with the most frequent reasons, and how many have not finished."""
    missing = [run for run in runs if not run.finished]
    bad = [run for run in missing if run.state in BAD]
    if bad:
        states = ", ".join(f"{number} {state}" for state, number in Counter(run.state for run in bad).items())
        yield (
            f"{len(bad)} of {count(len(runs), 'run')} ended without a result ({states}); fix the cause, then rerun "
            "with `submit --retry`."
        )
    kinds: dict[tuple[str, str], list[RunRecord]] = {}
    for run in (run for run in bad if run.state != "cancelled"):
        kinds.setdefault((run.state, diagnosis.generalize(run.reason)), []).append(run)
    for (state, _), alike in sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:MOST_REASONS]:
        if alike[0].reason:
            yield f"{count(len(alike), 'run')} {state}: {alike[0].reason}"
    if waiting := len(missing) - len(bad):
        have = "has" if waiting == 1 else "have"
        yield f"{waiting} of {count(len(runs), 'run')} {have} no result yet."


def _measures(analysis: Analysis) -> Iterator[str]:
    """Yield notes on runs whose final value is not from the column that the study compares."""
    column = analysis.study.measure.column
    finished = [run for run in analysis.study.runs if run.finished]
    if other := [run.id for run in finished if not run.has_measure]:
        yield (
            f"{count(len(other), 'run')} ended before `metrics.compare` was {column} and cannot be compared: "
            f"{join_names(other)}. Rerun them with `submit --rerun RUN`."
        )
    training = [run.id for run in finished if run.has_measure and run.measure == "loss" != column]
    if training and len(training) == len(finished):
        yield "No held-out loss was reported: the headline is the mean training loss over the last tenth of the steps."
    elif training:
        yield (
            "Reported no held-out loss; their training loss cannot be compared with the others: "
            f"{join_names(training)}."
        )


def _metrics_output(analysis: Analysis) -> Iterator[str]:
    """Yield notes on command output that may have been misread."""
    runs = analysis.study.runs
    if bad := sum(int(run.number("unreadable_numbers") or 0) for run in runs):
        yield f"{count(bad, 'value')} or lines of the metrics could not be read as numbers and were skipped."
    if restarted := [run.id for run in runs if run.number("steps_began_again")]:
        yield (
            f"Steps restarted from the beginning in {join_names(restarted)}, so later rows replaced earlier ones. If "
            "each epoch counts its own steps, name the epoch too: (?P<epoch>\\d+), or a column `epoch`; after a "
            "resume, print the step of the whole run."
        )
    if repeated := [r.id for r in runs if (r.number("steps_repeated") or 0) > REPEATED * max(r.curve.rows, 1)]:
        yield (
            f"Steps have more than one loss in {join_names(repeated)}; the last one counts. If several processes "
            "print, let only rank 0 print, or begin each line with [rank0]:."
        )


def _runs(analysis: Analysis) -> Iterator[str]:
    """Yield notes on runs that diverged, were altered or stopped early."""
    runs = analysis.study.runs
    if diverged := [f"{run.cell} seed {run.seed}" for run in runs if run.diverged]:
        yield f"Diverged and excluded from all means and intervals: {join_names(diverged)}."
    if altered := [f"{run.id}: {run.altered}" for run in runs if run.altered]:
        yield f"loss.csv was changed after the run ended; rerun with submit --retry: {join_names(altered)}."
    if early := sum(bool(run.summary.get("stopped_early")) for run in runs):
        yield (
            f"{count(early, 'run')} stopped early, as configured, and "
            f"{'counts' if early == 1 else 'count'} as finished."
        )


def _noise(analysis: Analysis) -> Iterator[str]:
    """Yield notes on cells and runs that do not fit the noise of the others, and on a changed margin."""
    found = analysis.comparison
    if found.odd:
        judged = "every cell is judged by its own paired t test" if analysis.reference in found.odd else "judged apart"
        yield f"Far noisier than the other cells (Cochran's test): {join_names(found.odd)}; {judged}."
    if found.outliers:
        runs = join_names([f"{cell} seed {seed}" for cell, seed in found.outliers])
        yield f"Outlying final values, kept in all means: {runs}."
    if other := [c for c in analysis.compared if c.incomparable]:
        yield f"No verdict for {join_names([c.name for c in other])}: {other[0].incomparable}."
    if analysis.study.margin_changed:
        margin = "removed" if analysis.margin is None else f"set to {analysis.margin:g}"
        yield f"The margin was {margin} after the study had been submitted."
    yield from sequential.describe_growth(analysis)


def _design(analysis: Analysis) -> Iterator[str]:
    """Yield notes on what the design of the study can and cannot show."""
    if analysis.single_seed:
        yield f"Every effect is from {ONE_SEED}."
    if analysis.main_effects and analysis.family:
        screen = analysis.combinations.screen
        name = "Screening" if screen else "Full factorial"
        yield (
            f"{name} design: main effects use every run and are more powerful than the comparisons of single "
            f"cells{', which are described, not tested' if analysis.factorial else ''}."
        )
        if screen and (warning := screening.alias_warning(screen)):
            yield warning
    schedules = [cell.name for cell in analysis.compared if cell.changes == ("schedule",)]
    if schedules and not analysis.tuned and any("model" in cell.changes for cell in analysis.compared):
        yield (
            f"{join_names(schedules)} {'changes' if len(schedules) == 1 else 'change'} the learning-rate schedule; a "
            "schedule should be tuned at its own peak rate."
        )


def _corpus(analysis: Analysis) -> Iterator[str]:
    yield from corpus_notes.unreached(analysis.study.runs)
    yield from documents.notes(analysis.study.runs)


def _differences(analysis: Analysis) -> Iterator[str]:
    """Yield notes on what differs between finished runs but should not."""
    finished = [run for run in analysis.study.runs if run.finished]
    usable = [run for run in finished if run.usable]
    checks: Sequence[tuple[list[RunRecord], str, str]] = (
        (
            usable,
            "tokens",
            "Runs trained on different numbers of tokens; each pair is compared at the smaller number.",
        ),
        (usable, "val_tokens", "The held-out sets differ in size: the runs are not evaluated on the same text."),
        (_one_way_to_cut(usable), "val_fingerprint", "The runs are not evaluated on the same held-out text."),
        (finished, "data_fingerprint", "The runs read different data (data fingerprints differ): not comparable."),
        (finished, "device", "The runs used different devices: times are not comparable."),
    )
    for runs, key, text in checks:
        if len({str(run.summary[key]) for run in runs if key in run.summary}) > 1:
            yield text
    yield from _changed_weights(finished)
    if len({str(run.setting("data.tokenizer")) for run in finished if run.config}) > 1:
        yield (
            f"The runs use different tokenizers: their {analysis.measure.name} is not comparable. "
            "Compare their bits per byte."
        )


def _changed_weights(runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yield notes on values of model.init_from whose weights differ between runs."""
    found: dict[str, set[str]] = {}
    for run in runs:
        if run.setting("model.init_from"):
            prints = found.setdefault(str(run.setting("model.init_from")), set())
            prints.add(str(run.summary.get(recorded_inputs.WEIGHTS)))
    for name in (name for name, prints in found.items() if len(prints) > 1):
        yield f"The weights in {name} (model.init_from) changed between runs: not comparable."


def _one_way_to_cut(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs, or none if their windows differ in block size, tokenizer or separator."""
    names = ("data.block_size", "data.tokenizer", "data.separator")
    ways = {(*map(run.setting, names), run.number("val_tokens")) for run in runs}
    return runs if len(ways) == 1 else []
