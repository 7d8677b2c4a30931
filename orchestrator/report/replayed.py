"""Judge whether a replay reproduces the archived results: identical numbers, or a test that they are equivalent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from ablatrix.orchestrator.report.statistics import ALPHA
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.collect import RunRecord
    from ablatrix.orchestrator.report.homogeneity import Noise
    from ablatrix.orchestrator.store.study_dir import StudyRun

ROUNDING = 0.01  # fraction of the noise between seeds: an unrelated run comes this close with probability 0.006


class Outcome(StrEnum):
    """What a replay shows."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Pair:
    """An archived run and its replay.

    identical: every row is equal; apart: largest difference at any evaluation; made_in: environment of the archived
    run.
    """

    cell: str
    seed: int
    archived: float | None
    replayed: float | None
    identical: bool = False
    apart: float = math.inf
    made_in: str = ""

    @property
    def difference(self) -> float | None:
        """Replayed minus archived final value."""
        return None if self.archived is None or self.replayed is None else self.replayed - self.archived


def pair(archived: RunRecord, replayed: RunRecord, folders: Sequence[StudyRun], made_in: str) -> Pair:
    """Return a run and its replay as a pair. folders: their run folders; made_in: the archived run's environment."""
    one, two = (run.curve.held_out["val_loss"] for run in (archived, replayed))
    same = len(one) == len(two)
    ends = [abs(a - b) for a, b in ((archived.value, replayed.value),) if a is not None and b is not None]
    apart = max([*np.abs(two - one).tolist(), *ends], default=math.inf) if same and ends else math.inf
    rows = [_rows(run) for run in folders]
    identical = rows[0] == rows[1] and archived.value == replayed.value
    return Pair(archived.cell, archived.seed, archived.value, replayed.value, identical, apart, made_in)


def _rows(run: StudyRun) -> list[list[str]]:
    """Return the rows of a run's loss.csv without the timing columns."""
    columns = [name for name in loss_csv.COLUMNS if name not in loss_csv.CLOCK_COLUMNS]
    return loss_csv.parse_columns(run_files.read_text(run.folder / run_files.LOSS), columns)


def default_cells(analysis: Analysis) -> list[str]:
    """Return the names of the baseline and of the best other cell."""
    others = {name: cell.mean for name, cell in analysis.cells.items() if name != analysis.reference}
    known = {name: mean for name, mean in others.items() if mean is not None}
    sign = -1 if analysis.measure.higher_is_better else 1
    best = min(known, key=lambda name: sign * known[name], default=None)
    return [name for name in (analysis.reference, best) if name is not None]


def judge(
    pairs: Sequence[Pair],
    noise: Noise | None,
    margin: float | None,
    *,
    on_cpu: bool = False,
    same_environment: bool = False,
) -> tuple[Outcome, str]:
    """Return the outcome of a replay and the reason; the first rule that applies decides.

    1. All runs are bit-identical, or their evaluations differ only by rounding: reproduced.
    2. A run differs where it should not: on a CPU in the archive's environment, or on any device if another run of the
       same cell in the same environment is bit-identical.
    3. Two one-sided tests at the margin for each cell (Schuirmann 1987), then a two-sided t test for each cell,
       Bonferroni-corrected over cells.

    A replay counts as an independent draw with the noise of the study's own runs, so
    its difference from the archived run has a standard error of at most sd * sqrt(2 / n).

    noise: run-to-run standard deviation that the seed does not explain.
    """
    odd = [f"{p.cell} with seed {p.seed}" for p in pairs if p.archived is not None and p.replayed is None]
    if odd:
        return Outcome.NOT_REPRODUCED, f"diverged, as the archived runs did not: {', '.join(odd)}"
    known = [p for p in pairs if p.difference is not None]
    if not known:
        return Outcome.CANNOT_TELL, "no archived run has a final value"
    if all(p.identical for p in known):
        return Outcome.REPRODUCED, f"bit for bit: every row of {count(len(known), 'run')} is the same"
    apart = max(p.apart for p in known)
    if noise is not None and apart <= ROUNDING * noise.sd:
        share = f"{ROUNDING:.0%} of the noise between seeds ({noise.sd:.2g})"
        return Outcome.REPRODUCED, f"up to rounding: no evaluation differs by more than {apart:.1g}, below {share}"
    if on_cpu and same_environment:
        same = "the environment is that of the archive, where a run repeats bit for bit"
        return Outcome.NOT_REPRODUCED, f"{same}, and evaluations differ by up to {apart:.2g}"
    exact = {(p.cell, p.made_in) for p in known if p.identical}
    if on_cpu and (wrong := [p for p in known if (p.cell, p.made_in) in exact and not p.identical]):
        named = ", ".join(f"{p.cell} with seed {p.seed} differs by up to {p.apart:.2g}" for p in wrong)
        return Outcome.NOT_REPRODUCED, f"{named}, and another seed of that cell repeats bit for bit here"
    if noise is None or margin is None:
        few = "the archive has too few runs to estimate the noise between seeds"
        return Outcome.CANNOT_TELL, f"{few}, and evaluations differ by up to {apart:.2g}"
    return _test(known, noise, margin)


def _test(pairs: Sequence[Pair], noise: Noise, margin: float) -> tuple[Outcome, str]:
    by_cell: dict[str, list[float]] = {}
    for p in pairs:
        by_cell.setdefault(p.cell, []).append(p.difference or 0.0)
    means = {cell: math.fsum(found) / len(found) for cell, found in by_cell.items()}
    errors = {cell: noise.sd * math.sqrt(2 / len(found)) for cell, found in by_cell.items()}
    one_sided = float(stdtrit(noise.df, 1 - ALPHA))
    two_sided = float(stdtrit(noise.df, 1 - ALPHA / (2 * len(means))))
    bounds = {cell: abs(mean) + one_sided * errors[cell] for cell, mean in means.items()}
    widest = max(bounds.values())
    if widest < margin:
        return Outcome.REPRODUCED, f"every cell differs by less than {margin:.3g} (TOST: at most {widest:.3g})"
    wrong = [cell for cell, mean in means.items() if abs(mean) > two_sided * errors[cell]]
    if wrong:
        shown = ", ".join(f"{cell} by {means[cell]:+.3g} ± {two_sided * errors[cell]:.2g}" for cell in wrong)
        return Outcome.NOT_REPRODUCED, f"cells differ: {shown}"
    reason = f"differences of up to {widest:.3g} are possible, more than the margin of {margin:.3g}"
    return Outcome.CANNOT_TELL, f"{reason}; replay more --seeds, or give a wider --margin"
