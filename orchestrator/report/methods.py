"""The methods section: generated from the finished runs, not from the plan."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import divergence, forests, sizes_section, tuning_text, verdicts
from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.formatting import join_names, p_equals, plain, quantity
from ablatrix.orchestrator.report.verdicts import ONE_SEED
from ablatrix.orchestrator.study import screening
from ablatrix.orchestrator.study.dotted import flatten
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.collect import RunRecord

NAMED = 10  # runs listed by name
COARSE = 1e-6  # a coarser resolution of values is worth a sentence
SAMPLINGS = {
    "packed": ", in blocks packed with whole documents by best fit",
    "stream": ", in random windows of all documents in a row",
}


def paragraphs(analysis: Analysis) -> list[str]:
    """Return paragraphs on the runs, the training, evaluation and statistics, and the environment."""
    tuning, sizes = tuning_text.method(analysis), sizes_section.method(analysis)
    made = [_runs(analysis), _training(analysis), tuning, _statistics(analysis), sizes, _environment(analysis)]
    return [text for text in made if text]


def _runs(analysis: Analysis) -> str:
    study = analysis.study
    runs = study.runs if analysis.progress else [run for cell in analysis.cells.values() for run in cell.runs]
    seeds = _seeds(sorted({run.seed for run in runs if run.cell in analysis.cells}))
    seeds = f"up to {seeds} so far" if analysis.progress else seeds
    tuned = ", tuned with other seeds," if analysis.tuned else ""
    finished = [run for run in study.runs if run.finished]
    diverged = sum(run.diverged for run in finished)
    again = f", and the baseline again with {_seeds(analysis.aa.seeds)}," if analysis.aa else ""
    made, cells = count(len(study.runs), "run"), count(len(analysis.cells), "cell")
    text = f"{cells} with {seeds}{tuned}{again} make {made}, of which {len(finished)} finished"
    text += f" and {diverged} of those diverged." if diverged else "."
    changes = "; ".join(f"{name}: {_settings(settings)}" for name, settings in study.features.items())
    return text + (f" Features: {changes}." if changes else "")


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    shown = ", ".join(map(str, seeds[:10])) + (" and more" if len(seeds) > 10 else "")
    return f"{len(seeds)} seeds ({shown})"


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "nothing"


def _example(analysis: Analysis) -> RunRecord | None:
    """Return the first run of the baseline that has a configuration, else the first such run of any cell."""
    runs = (*(analysis.base.runs if analysis.base else ()), *analysis.study.runs)
    return next((run for run in runs if run.config), None)


def sampling(get: Callable[[str], Any]) -> str:
    """Return how batches are drawn, "" for windows of single documents. get: returns a setting of the baseline."""
    mask = ", with attention within each document" if get("data.document_mask") else ""
    text = SAMPLINGS.get(str(get("data.sampling")), "")
    return text + mask + (" (held-out documents begin with the separator too)" if text else "")


def _training(analysis: Analysis) -> str:
    run = _example(analysis)
    if run is None:
        return ""
    if run.command:
        return _of_command(run)
    get = run.setting
    model = get("model.model_type") or "a custom size"
    text = (
        f"The baseline is a GPT of {get('model.n_layer')} layers, {get('model.n_head')} heads and width "
        f"{get('model.n_embd')}{components(get)} ({model}, {quantity(run.parameters)} parameters, "
        f"{get('model.vocab_size')} tokens of vocabulary, tokenizer {get('data.tokenizer')}), trained for "
        f"{get('trainer.max_iters')} steps of {get('trainer.batch_size')} × {get('data.block_size')} tokens with "
        f"{optimizer(get)}, "
        f"{schedule(get)})"
    )
    path = get("data.file_path")
    data = f" on {', '.join(path) if isinstance(path, list | tuple) else path}"
    if run.summary.get("data_fingerprint"):
        data += f" (fingerprint {str(run.summary['data_fingerprint'])[:12]})"
    data += sampling(get)
    if get("model.init_from"):
        data += f", starting from the weights of {get('model.init_from')}"
        data += f" (fingerprint {str(run.summary.get('init_fingerprint', 'not known'))[:12]})"
    names = ("file_path", "text_files", "block_size", "sampling", "separator", "test_size", "test_file", "tokenizer")
    keys = ("trainer.batch_size", *(f"data.{name}" for name in names))
    configured = [other for other in analysis.study.runs if other.config]
    # Equal sections are one object, so that most runs need not be asked
    distinct = {(id(other.config.get("data")), id(other.config.get("trainer"))): other for other in configured}
    alike = all(other.setting(key) == get(key) for other in distinct.values() for key in keys)
    return f"{text}{data}." + (" For one seed, all cells see the same batches in the same order." if alike else "")


PARTS = {
    "learned": "learned positions",
    "rope": "rotary positions",
    "alibi": "ALiBi",
    "sinusoidal": "sinusoidal positions",
    "gelu": "GELU",
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "reglu": "ReGLU",
    "relu2": "squared ReLU",
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
}


def components(get: Callable[[str], Any]) -> str:
    """Return ` with learned positions, GELU feed-forward layers and LayerNorm before each sublayer`."""
    positions, feedforward, norm = (get(f"model.{name}") for name in ("positions", "feedforward", "norm"))
    where = "after each sublayer's sum" if get("model.norm_placement") == "post" else "before each sublayer"
    parts = [
        "no positions" if positions == "none" else PARTS.get(positions, f"positions {positions}"),
        *(["trainable slopes"] if get("model.alibi_trainable") else []),
        f"{PARTS.get(feedforward, feedforward)} feed-forward layers",
        "no norm" if norm == "none" else f"{PARTS.get(norm, norm)} {where}",
        *(["normalized queries and keys"] if get("model.qk_norm") else []),
        *([count(n, "head") + " of keys"] if (n := get("model.n_kv_head")) and n != get("model.n_head") else []),
        *(["a tied head"] if get("model.tie_embeddings") else []),
        *(["no biases"] if get("model.bias") is False else []),
    ]
    return f" with {', '.join(parts[:-1])} and {parts[-1]}"


def optimizer(get: Callable[[str], Any]) -> str:
    """Return `AdamW (peak learning rate 0.0005, betas ...`; the parenthesis is left open for the schedule."""
    name = get("trainer.optimizer")
    betas, momentum = f"betas {' and '.join(map(str, get('trainer.betas')))}", f"momentum {get('trainer.momentum')}"
    nesterov = " in Nesterov's form" if get("trainer.nesterov") else ""
    title, own = {
        "adamw": ("AdamW", betas),
        "sgd": ("SGD", momentum + nesterov),
        "muon": ("Muon (the matrices of the blocks) and AdamW (the rest)", f"{momentum}{nesterov}, {betas}"),
        "adafactor": ("Adafactor", f"updates clipped at {get('trainer.update_clip')}"),
    }.get(name, (f"the optimizer {name}", f"{momentum}, {betas}"))  # one that a later version may have
    return (
        f"{title} (peak learning rate {get('trainer.learning_rate')}, {own}, weight decay "
        f"{get('trainer.weight_decay')}, gradient norm clipped at {get('trainer.grad_norm_clip')}"
    )


def schedule(get: Callable[[str], Any]) -> str:
    """Return `40 steps of warm-up, cosine decay to 0.1 of the peak`."""
    warmup = get("trainer.warmup_steps")
    name = get("trainer.schedule") or ("cosine" if get("trainer.use_cosine") else "constant")
    floor = f"to {get('trainer.min_lr_ratio')} of the peak"
    shape = "1 − sqrt" if get("trainer.decay_shape") == "sqrt" else "linear"
    after = {
        "constant": "constant afterwards",
        "cosine": f"cosine decay {floor}",
        "linear": f"linear decay {floor}",
        "inverse_sqrt": "decay with the inverse square root of the step",
        "wsd": f"constant afterwards, {shape} decay {floor} over the last {get('trainer.decay_steps')} steps",
        "infinite": (
            f"cosine cool-down to {get('trainer.constant_lr_ratio')} of the peak over {get('trainer.cooldown_steps')} "
            f"steps, constant afterwards, exponential annealing {floor} over the last {get('trainer.anneal_steps')}"
        ),
    }.get(str(name), f"the schedule {name} afterwards")
    return (f"{warmup} steps of warm-up, " if warmup else "no warm-up, ") + after


def _of_command(run: RunRecord) -> str:
    """Describe the training of a command."""
    settings = run.config.get("settings")
    flat = flatten(settings) if isinstance(settings, dict) else {}
    listed = ", ".join(f"{key}={value}" for key, value in flat.items())
    baseline = f" with, in the baseline, {listed}" if listed else ""
    return f"Each run is the command `{shlex.join(run.command)}`{baseline}."


def _held_out(run: RunRecord) -> str:
    """Return which text is held out, '' if none is."""
    file, size = run.setting("data.test_file"), run.setting("data.test_size")
    if file:
        return ", ".join(file) if isinstance(file, list | tuple) else str(file)
    if isinstance(size, float):
        return f"the last {size:.3g} of the corpus lines"
    return f"the last {count(size, 'document')} of the corpus" if size else ""


def _statistics(analysis: Analysis) -> str:
    run = _example(analysis)
    held = _held_out(run) if run else ""
    sizes = sorted({int(n) for r in analysis.study.runs if (n := r.number("val_tokens"))})
    if run and run.command:
        measure = analysis.measure
        text = f"The headline is the {measure.label} of the last evaluation, as the command reports it"
        if any(r.measure == "loss" for r in analysis.study.runs if r.finished):
            mean = f"the mean {measure.label}" if measure.column == "loss" else "the mean training loss"
            text = f"The headline is {mean} over the last tenth of the steps, as the command reports it"
        text += f" ({measure.better} is better)"
    else:
        text = "The headline is the mean negative log-likelihood, in nats per token, of a fixed held-out set"
    if held and sizes:
        text += f" ({quantity(sizes[0])} tokens of {held})"
    text += (
        f" after training, at a matched number of training {analysis.budget}. An effect is the cell minus the baseline."
    )
    return text + _inference(analysis) + _diverged(analysis)


METHODS = {
    "pooled": (
        "Effects are estimated by least squares over all runs (value ~ cell + seed), so that all cells share one "
        "estimate of the noise; a noisier cell uses its own estimate."
    ),
    "paired t": "Cells that are far noisier than the others are judged by their own paired t test.",
    "unpaired": (
        "Cells that no common seed connects with the baseline are judged without pairing, by the spread within the "
        "cells that have several seeds."
    ),
    "descriptive": f"Some differences are from {ONE_SEED}.",
}


def _inference(analysis: Analysis) -> str:
    """Return how effects are judged: methods, correction, margin and noise."""
    used = {c.effect.method for c in analysis.compared if c.effect}
    text = "".join(f" {sentence}" for method, sentence in METHODS.items() if method in used) + _screening(analysis)
    if analysis.family and analysis.factorial:
        text += (
            f" The {verdicts.tested_tables(analysis)} are contrasts of the cells in this fit, with intervals and p "
            f"values simultaneous within each table (multivariate t; error rate {st.ALPHA}). "
            f"{forests.untested(analysis)} The cells' intervals are simultaneous over {analysis.family} comparisons "
            "with the baseline (Dunnett 1955)."
        )
    elif analysis.family:
        text += _verdicts(analysis)
        if analysis.margin is not None:
            text += (
                f" No effect larger than {analysis.margin:g}{analysis.measure.short_unit}, the margin of the "
                "experiment file, is claimed if the simultaneous interval at twice the error rate lies within it "
                "(two one-sided tests; Schuirmann 1987)."
            )
    return text + _noise(analysis)


def _verdicts(analysis: Analysis) -> str:
    """Return how the cells' verdicts follow from their intervals."""
    if analysis.family == 1:
        return (
            f" The cell helps or hurts if its {analysis.interval_name} excludes 0 ({_error_rate(analysis)}). Its own "
            "paired t test without pooling is given as well."
        )
    return (
        f" Verdicts are simultaneous over {analysis.family} comparisons with the baseline (Dunnett 1955; "
        f"{_error_rate(analysis)}): a cell helps or hurts if its simultaneous {analysis.interval_name} excludes 0. "
        "Pointwise 95% intervals are not adjusted. Each cell's own paired t test without pooling, Holm-corrected, is "
        "given as well."
    )


def _error_rate(analysis: Analysis) -> str:
    """Return the error rate of the verdicts; with planned looks, how it is split and how much of it is spent."""
    progress = analysis.progress
    if progress is None:
        return f"error rate {st.ALPHA}"
    looks, spent = progress.looks, f"{progress.spent:g} of {sum(progress.looks.alpha):g}"
    futility = ""
    if looks.futility and analysis.margin is None:
        futility = (
            f", and so does one whose probability of being decided by the last look is under {looks.futility:g} given "
            "its observed effect (conditional power; Lan & Wittes 1988)"
        )
    return (
        f"planned looks after {join_names([str(n) for n in looks.seeds])} seeds with error rates of "
        f"{join_names([f'{alpha:g}' for alpha in looks.alpha])}, of which {spent} is spent; a cell that is decided "
        f"stops, and its interval is that of its look{futility}"
    )


def _screening(analysis: Analysis) -> str:
    """Return how the cells of a screening design were chosen, and what is estimated from them."""
    screen = analysis.combinations.screen
    if screen is None:
        return ""
    lines = "; ".join(screening.describe(screen, list(analysis.study.features)))
    return (
        f" The design is a {lines}. Main effects{' and pairs' if screen.chains else ''} are least-squares estimates on "
        "its cell means (Box, Hunter & Hunter 2005), with the noise of all runs."
    )


def _noise(analysis: Analysis) -> str:
    """Return the noise of the pool and its tests, and the resolution of rounded values."""
    noise, resolution = analysis.comparison.noise, analysis.comparison.resolution
    unit, text = analysis.measure.short_unit, ""
    if noise:
        tests = [("Bartlett", noise.bartlett), ("Levene", noise.levene)]
        shown = ", ".join(f"{name} p {p_equals(p)}" for name, p in tests if p is not None)
        text += (
            f" The noise of a run is {plain(noise.sd, analysis.decimals + 1)}{unit} ({noise.df} degrees of freedom"
            f"{f'; equal in all cells: {shown}' if shown else ''}). Pairing by seed removed "
            f"{noise.paired_away:.0%} of the variance (intraclass correlation {noise.intraclass:.2f})."
        )
    if analysis.comparison.effects and resolution >= COARSE:
        text += f" The values are rounded to {resolution:g}{unit}: no smaller effect is decided."
    return text


def _diverged(analysis: Analysis) -> str:
    found = [run for run in analysis.study.runs if run.diverged]
    if not found:
        return ""
    verb = "is" if len(found) == 1 else "are"
    names = ", ".join(f"{run.cell} seed {run.seed}" for run in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        f" {count(len(found), 'run')} diverged and {verb} excluded from all means and intervals: {names}{more}. "
        f"A run counts as diverged if {divergence.RULE}."
    )


def _environment(analysis: Analysis) -> str:
    finished = [run for run in analysis.study.runs if run.finished]
    if not finished:
        return ""
    devices = sorted({str(run.summary["device"]) for run in finished if run.summary.get("device")})
    text = f"All attempts took {analysis.hours}" + (f" on {' and '.join(devices)}" if devices else "")
    return f"{text}.{_versions(finished)}"


def _versions(runs: Sequence[RunRecord]) -> str:
    """Return all commits and package versions in provenance.json."""
    commits = sorted({str(r.provenance["git_commit"])[:10] for r in runs if r.provenance.get("git_commit")})
    dirty = any(run.provenance.get("git_dirty") for run in runs)
    found: dict[str, set[str]] = {}
    for run in runs:
        versions = run.provenance.get("versions")
        for name, version in versions.items() if isinstance(versions, dict) else ():
            found.setdefault(str(name), set()).add(str(version))
        if run.provenance.get("python"):
            found.setdefault("Python", set()).add(str(run.provenance["python"]))
    text = f" Code: commit {', '.join(commits)}" + (" with uncommitted changes." if dirty else ".") if commits else ""
    listed = ", ".join(f"{name} {' and '.join(sorted(versions))}" for name, versions in found.items())
    return text + (f" Versions: {listed}." if listed else "")
