"""The result of a study as JSON, for scripts: `report --json`. docs/automation.md describes its fields."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import across_sizes, heldout_text, methods, notes, sequential, verdicts, wording
from ablatrix.orchestrator.study.scale import Size

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.attribution import Attribution
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.contrasts import Contrast
    from ablatrix.orchestrator.report.progress import Progress
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.report.tuned import Tuned


def record_of(analysis: Analysis) -> dict[str, Any]:
    """Return the study's result. Numbers keep all digits; unknown values are None."""
    study, measure = analysis.whole, analysis.measure
    record = {
        "study": study.name,
        "folder": str(study.folder),
        "headline": wording.headline(analysis),
        "measure": {"name": measure.name, "unit": measure.unit, "higher_is_better": measure.higher_is_better},
        "budget": analysis.budget,
        "hours": asdict(analysis.hours),
        "time_withheld": analysis.times.withheld,
        "baseline": analysis.reference,
        "comparisons": analysis.family,
        "looks": _looks(analysis.progress),
        "unplanned_looks": len(sequential.unplanned(study.plans)),
        "smallest_effect_shown": analysis.detectable,
        "runs": {"planned": len(study.runs), **_run_counts(study.runs)},
        "cells": [
            _cell(cell, found) | {"cell": name} | ({"size": size} if analysis.ladder else {})
            for size, found in analysis.by_size.items()
            for name, cell in [(Size(size).cell(c.name), c) for c in found.cells.values()]
        ],
        "design": list(study.design),
        "main_effects": [contrast_record(contrast) for contrast in analysis.main_effects],
        "interactions": [contrast_record(contrast) for contrast in analysis.interactions],
        "aa": _aa(analysis),
        "attribution": _attribution(analysis.attribution),
        "marginal_means": [asdict(mean) for mean in analysis.combinations.marginal_means],
        **({"tuning": _tuning(analysis.tuned)} if analysis.tuned else {}),
        **({"scale": across_sizes.record(analysis)} if analysis.ladder else {}),
        "warnings": notes.notes(analysis),
        "methods": methods.paragraphs(analysis),
    }
    return {key: _finite(value) for key, value in record.items()}


def _run_counts(runs: Any) -> dict[str, int]:
    return {
        "finished": sum(run.finished for run in runs),
        "in_mean": sum(run.usable for run in runs),
        "diverged": sum(run.diverged for run in runs),
    }


def _cell(cell: CellResult, analysis: Analysis) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "features": list(cell.features),
        "verdict": str(cell.verdict),
        "sentence": verdicts.sentence(cell, analysis),
        "look": analysis.progress.stopped.get(cell.name) if analysis.progress else None,
        "e_value": sequential.cell_e_value(cell, analysis),
        "value": cell.mean,
        "value_at_budget": cell.mean_at_budget,
        "seed_sd": cell.sd,
        "values": {str(seed): value for seed, value in sorted(cell.values.items())},
        "runs": {"planned": len(cell.runs), **_run_counts(cell.runs)},
        "effect": _effect(cell.effect),
        "effect_equal_flops": _effect(cell.equal_flops),
        "effect_equal_seconds": _effect(cell.equal_seconds),
        **heldout_text.columns(cell),
        "parameters": cell.parameters,
        "flops_per_token": cell.flops_per_token,
        "tokens": cell.average("tokens"),
        "seconds": cell.seconds_per_run,
        "step_time_ratio": analysis.times.ratio(cell.name),
        "hours": asdict(cell.hours),
        "warnings": verdicts.flags(cell, analysis),
    }


def _looks(progress: Progress | None) -> dict[str, Any] | None:
    """Return the planned looks, how many have ended, and the cells that continue."""
    if progress is None:
        return None
    return {
        **progress.looks.as_record(),
        "ended": progress.ended,
        "alpha_spent": progress.spent,
        "going_on": list(progress.going_on),
        "stopped_for_futility": list(progress.futile),
    }


def _aa(analysis: Analysis) -> dict[str, Any] | None:
    """Return the A/A check."""
    found = analysis.aa
    if found is None:
        return None
    return {
        "verdict": str(found.verdict),
        "failed": found.failed,
        "sentence": wording.aa_sentence(analysis),
        "seeds": list(found.seeds),
        "effect": _effect(found.effect),
    }


def _attribution(found: Attribution | None) -> dict[str, Any] | None:
    """Return the shares of the effect of all features."""
    if found is None:
        return None
    ends = {"first_in": found.first_in, "last_in": found.last_in}
    return {
        "method": str(found.method),
        "whole": _effect(found.whole.effect),
        "shares": [contrast_record(share) for share in found.shares],
        **{name: [contrast_record(contrast) for contrast in each] for name, each in ends.items() if each},
        "rest": _effect(found.rest.effect) if found.rest else None,
    }


def contrast_record(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast's name and effect."""
    return {"name": contrast.name, "effect": _effect(contrast.effect)}


def _tuning(found: Tuned) -> dict[str, Any]:
    """Return the best values of a tuned study, and its effects at the baseline's best value."""
    return {
        "setting": found.tune.setting,
        "grid": list(found.tune.grid),
        "seeds": list(found.tune.seeds),
        "ended": found.ended,
        "cells": [
            {
                "cell": name,
                "best": arm.optimum.value if arm.optimum else None,
                "fitted": arm.optimum.fitted if arm.optimum else None,
                "at_edge": arm.optimum.at_edge if arm.optimum else None,
                "sensitivity": arm.optimum.sensitivity if arm.optimum else None,
                "means": {f"{value:g}": mean for value, mean in arm.optimum.means.items()} if arm.optimum else {},
                "effect_at_baselines_best": _effect(found.equal.get(name)),
                "verdict_at_baselines_best": found.verdicts.get(name),
            }
            for name, arm in found.arms.items()
        ],
    }


def _effect(effect: Effect | None) -> dict[str, Any] | None:
    """Return an effect with pointwise (`low`, `high`, `p`) and simultaneous (`joint_...`) intervals and p values."""
    if effect is None:
        return None
    return {
        "mean": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "p": effect.p,
        "joint_low": effect.joint_low,
        "joint_high": effect.joint_high,
        "p_joint": effect.p_joint,
        "alpha": effect.alpha,
        "at_least": effect.at_least,
        "method": effect.method,
        "runs": effect.n,
        "without_outliers": effect.without_outliers,
        "without_pooling": _effect(effect.paired),
    }


def _finite(value: Any) -> Any:
    """Return the value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
