"""Synthetic studies on disk, in the formats that submit and the trainer write, with effects planted in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablatrix.models.config import count_parameters, flops_per_token
from ablatrix.trainer.config import validate
from ablatrix.trainer.rundir.loss_csv import COLUMNS
from ablatrix.trainer.rundir.step_time import lower_quartile

VOCABULARY = 512
FEATURES: dict[str, dict[str, Any]] = {
    "swiglu": {"model.swiglu": True},
    "rmsnorm": {"model.rmsnorm": True},
    "rope": {"model.rope": True},
    "warmup": {"trainer.warmup_steps": 20},
    "cosine": {"trainer.use_cosine": True},
}


@dataclass
class Plan:
    """The study to write. effects: nats added by each feature (they add up); fates: (cell, seed) -> fate of the run."""

    seeds: Sequence[int] = (1, 2, 3)
    features: Mapping[str, Any] = field(default_factory=lambda: dict(FEATURES))
    cells: Mapping[str, Sequence[str]] | None = None
    effects: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)  # cell -> nats beyond the sum of its features
    noise: float = 0.01  # SD of each run
    shared: float = 0.02  # SD of each seed's effect, which is the same in all cells
    fates: Mapping[tuple[str, int], str] = field(default_factory=dict)
    rows: int = 60
    evaluations: int = 6
    max_iters: int = 600
    name: str = "planted"
    domains: Sequence[str] = ()
    contexts: Sequence[int] = ()  # lengths; beyond the block a cell is 0.1 nats better, or has learned rows
    rng: int = 0
    model: str = "gpt-nano"
    slow: Mapping[tuple[str, int], float] = field(default_factory=dict)  # run -> its step time relative to the usual
    hosts: Mapping[tuple[str, int], str] = field(default_factory=dict)  # run -> host, by default one for all
    design: Sequence[Any] = ()  # as in the experiment file


def one_at_a_time(features: Sequence[str]) -> dict[str, list[str]]:
    """Return cell -> features for the baseline, each feature alone, and all_on."""
    return {"baseline": [], **{f: [f] for f in features}, "all_on": list(features)}


def write_study(folder: Path, plan: Plan) -> dict[str, tuple[str, str]]:
    """Write study.json and every run folder; return the states for `build`.

    Fates: done, running, planned (no folder), failed, lost, cancelled, diverged (NaN), risen (above its initial loss),
    stripped (done, but the overrides never reached the trainer).
    """
    cells = plan.cells or one_at_a_time(list(plan.features))
    rng = np.random.default_rng(plan.rng)
    shared = {seed: rng.normal(0, plan.shared) for seed in plan.seeds}
    runs, states = [], {}
    folder.mkdir(parents=True, exist_ok=True)
    for cell, features in cells.items():
        overrides = {k: v for f in features for k, v in plan.features[f].items()}
        for seed in plan.seeds:
            fate = plan.fates.get((cell, seed), "done")
            config = _config(plan, {} if fate == "stripped" else overrides, seed)
            plain = re.sub("[^A-Za-z0-9._+@-]|^[^A-Za-z0-9]", "x", cell)  # valid folder name for any cell name
            run = f"{plain}-seed{seed}-{config.fingerprint()}"
            planted = sum(plan.effects.get(f, 0.0) for f in features) + plan.extra.get(cell, 0.0)
            noise = rng.normal(0, plan.noise) if fate != "stripped" else 0.0
            if fate != "planned":
                _write_run(
                    folder / run, plan, config, shared[seed], planted + noise, fate, plan.slow.get((cell, seed), 1.0)
                )
                if (folder / run / "summary.json").exists():
                    _record_timing(folder / run, plan.hosts.get((cell, seed), "node1"))
            runs.append({"id": run, "cell": cell, "seed": seed, "features": list(features), "overrides": overrides})
            states[run] = _state(fate)
    study = {
        "name": plan.name,
        "file": f"experiments/{plan.name}.yaml",
        "created": 1_700_000_000.0,
        "features": dict(plan.features),
        "runs": runs,
        "design": list(plan.design),
    }
    (folder / "study.json").write_text(json.dumps(study))
    return states


def change_record(path: Path, **values: Any) -> None:
    """Change fields of a JSON file: of study.json, or of a run's summary.json."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_sizes(folder: Path, plans: Mapping[str, Plan]) -> dict[str, tuple[str, str]]:
    """Write a study with a scale axis, a plan per size (a preset of the model); return the states for `build`."""
    runs, states, study = [], {}, {}
    folder.mkdir(parents=True)
    for size, plan in plans.items():
        part = folder.with_name(f"{folder.name}-{size}")
        found = write_study(part, replace(plan, model=size))
        study = json.loads((part / "study.json").read_text())
        for run in study["runs"]:
            name, cell = run["id"].replace("-seed", f"@{size}-seed"), f"{run['cell']}@{size}"
            states[name] = found[run["id"]]
            if (part / run["id"]).exists():
                (part / run["id"]).rename(folder / name)
            runs.append({**run, "id": name, "cell": cell, "size": size})
    (folder / "study.json").write_text(json.dumps({**study, "runs": runs, "scale": {"sizes": list(plans)}}))
    return states


def _state(fate: str) -> tuple[str, str]:
    reasons = {"failed": "exit code 1: ValueError: loss is nan", "lost": "out of memory on node3", "planned": ""}
    done = ("done", "diverged", "risen", "stripped")
    return ("done", "") if fate in done else (fate, reasons.get(fate, ""))


def _config(plan: Plan, overrides: Mapping[str, Any], seed: int) -> Any:
    tree: dict[str, Any] = {
        "data": {"file_path": "data/corpus.jsonl", "block_size": 64, "tokenizer": "sample"},
        "model": {"model_type": plan.model},
        "trainer": {"max_iters": plan.max_iters, "batch_size": 8, "learning_rate": 5e-4},
        "system": {"seed": seed, "cache_dir": "cache", "work_dir": "run"},
    }
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return validate(tree).resolved(VOCABULARY)


def _record_timing(folder: Path, host: str) -> None:
    """Add to a summary.json where and how fast the run was trained."""
    path = folder / "summary.json"
    timing = {"host": host, "hardware": f"CPU of {host}", "started": 1_700_000_000.0}
    rows = [line.split(",") for line in (folder / "loss.csv").read_text().splitlines()[1:]]
    timing["step_seconds"] = lower_quartile([int(row[0]) for row in rows], [float(row[-1]) for row in rows])
    path.write_text(json.dumps({**json.loads(path.read_text()), "timing": timing}))


def _write_run(
    folder: Path, plan: Plan, config: Any, shared: float, planted: float, fate: str, slow: float = 1.0
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    rng = np.random.default_rng([plan.rng, config.system.seed])  # of the batches: the same in all cells of a seed
    share = {"running": 0.5, "failed": 0.3, "lost": 0.7, "cancelled": 0.2}.get(fate, 1.0)
    steps = np.unique(np.linspace(1, plan.max_iters, plan.rows).astype(int))
    evaluated = set(np.unique(np.linspace(0, len(steps) - 1, plan.evaluations + 1).astype(int))[1:].tolist())
    per_step = config.trainer.batch_size * config.data.block_size
    speed = 0.004 * (1.15 if config.model.swiglu else 1.0) * float(rng.uniform(0.97, 1.03)) * slow
    lines, value = [",".join(COLUMNS)], math.nan
    for i, step in enumerate(steps):
        if step > share * plan.max_iters:
            break
        value = held_out(step, plan.max_iters, shared + planted, fate)
        loss = value + rng.normal(0, 0.15) if fate != "diverged" or step < plan.max_iters / 2 else math.nan
        row: dict[str, Any] = {"iter": int(step), "loss": float(loss), "dt": speed, "lr": _rate(config, int(step))}
        row |= {
            "grad_norm": 1 + float(rng.gamma(2, 0.2)) + abs(planted),
            "tokens": int(step) * per_step,
            "seconds": step * speed,
        }
        row["val_loss"] = float(value) if i in evaluated else None
        lines.append(
            ",".join("" if row[c] is None else repr(float(row[c])) if c != "iter" else str(row[c]) for c in COLUMNS)
        )
    torn = "" if share == 1.0 else "\n250,3.1"
    (folder / "loss.csv").write_text("\n".join(lines) + (torn or "\n"))
    if share == 1.0:
        (folder / "summary.json").write_text(json.dumps(_summary(plan, config, value, fate, speed, per_step)))


def held_out(step: float, total: int, shift: float, fate: str) -> float:
    """Return the held-out NLL after `step` steps: a power law plus the shift, which grows in over the first fifth."""
    if fate == "diverged" and step >= total / 2:
        return math.nan
    if fate == "risen":
        return 6.2 + 3 * step / total
    return 3.0 + 3.2 * math.pow(1 + 60 * step / total, -0.7) + shift * min(1.0, 5 * step / total)


def _rate(config: Any, step: int) -> float:
    trainer = config.trainer
    rate: float = trainer.learning_rate * min(1.0, step / trainer.warmup_steps if trainer.warmup_steps else 1.0)
    if trainer.use_cosine and step > trainer.warmup_steps:
        done = (step - trainer.warmup_steps) / (trainer.max_iters - trainer.warmup_steps)
        rate *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
    return rate


def _summary(plan: Plan, config: Any, value: float, fate: str, speed: float, per_step: int) -> dict[str, Any]:
    finite = math.isfinite(value)
    made = {
        "iters": plan.max_iters,
        "max_iters": plan.max_iters,
        "tokens": plan.max_iters * per_step,
        "seconds": plan.max_iters * speed,
        "final_loss": value if finite else None,
        "val_nll": value if finite else None,
        "val_tokens": 4096,
        "initial_loss": 6.2,
        "diverged": fate == "diverged",
        "parameters": count_parameters(config.model),
        "flops_per_token": flops_per_token(config.model),
        "peak_memory_bytes": 312_000_000,
        "device": "cpu",
        "fingerprint": config.fingerprint(),
        "data_fingerprint": "0f1e2d3c",
        "skipped_documents": {"too short": 3},
    }
    if plan.domains and finite:
        made["val_nll_by_domain"] = {
            name: {"nll": value + 0.3 * i, "tokens": 4096 // (i + 1)} for i, name in enumerate(plan.domains)
        }
    if plan.contexts and finite:
        made["val_nll_by_block"] = {str(n): _at_length(n, config, value) for n in plan.contexts}
    return made


def _at_length(length: int, config: Any, value: float) -> dict[str, Any]:
    block = config.model.block_size
    if length > block and not config.model.extrapolates:
        return {"nll": None, "why": f"learned positions end at {block}"}
    return {"nll": value - 0.1 * (length > block), "tokens": 4000}
