"""The result of a finished run: model.pt and summary.json."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.models.gpt import measure
from ablatrix.trainer import checkpoint, eval_context_lengths, heldout_scores
from ablatrix.trainer.data import corpus_usage
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.device import describe, name_hardware, peak_memory
from ablatrix.trainer.rundir import run_files, timing
from ablatrix.trainer.rundir.events import note
from ablatrix.trainer.rundir.files import atomic_write

if TYPE_CHECKING:
    from ablatrix.trainer.data.token_store import TokenStore
    from ablatrix.trainer.inputs import Inputs
    from ablatrix.trainer.loop import Trainer
    from ablatrix.trainer.rundir.attempts import Attempt

logger = logging.getLogger(__name__)


def write_result(attempt: Attempt, trainer: Trainer, inputs: Inputs) -> None:
    """Write model.pt, val_documents.json and finally summary.json, which marks the run as done."""
    run_dir = attempt.run_dir
    val_nll, by_block, by_document = None, {}, {}
    if not trainer.diverged:
        val_nll, weights = trainer.result()
        checkpoint.save_torch(run_dir / run_files.MODEL, weights, attempt.require)
        by_document = _score_documents(attempt, trainer, inputs)
        by_block = eval_context_lengths.evaluate(trainer, inputs.text)
        for length, found in by_block.items():
            if found["nll"] is None:
                logger.info(f"held-out NLL at {length} tokens of context: not evaluated: {found['why']}")
    summary = _summarize(trainer, inputs.store, val_nll) | by_document
    summary |= timing.describe(run_dir, name_hardware(trainer.device))
    if by_block:
        summary["val_nll_by_block"] = by_block
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    atomic_write(run_dir / run_files.SUMMARY, text, guard=attempt.require)
    files = run_files.list_files(run_dir)
    note(run_dir, "finished", iter=trainer.iter, diverged=trainer.diverged, files=files)
    outcome = "diverged" if trainer.diverged else "stopped early" if trainer.stopped_early else "finished"
    logger.info(f"{outcome} after iter {trainer.iter}: val_nll {summary['val_nll']}, {trainer.seconds:.1f} s")


def _score_documents(attempt: Attempt, trainer: Trainer, inputs: Inputs) -> dict[str, Any]:
    """Write val_documents.json and return its entries for the summary; {} if nothing was scored."""
    nll = trainer.window_nll
    if nll is None or inputs.records is None or not np.isfinite(nll).all():
        return {}
    documents = heldout_scores.score_documents(inputs.heldout, inputs.records, nll)
    heldout_scores.write(attempt, documents)
    return heldout_scores.summarize(inputs.heldout, documents)


def _summarize(trainer: Trainer, store: TokenStore, val_nll: float | None) -> dict[str, Any]:
    config = trainer.config
    parameters, flops_per_token = measure(config.model)
    return {
        "iters": trainer.iter,
        "max_iters": config.trainer.max_iters,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds, 3),
        "final_loss": _number(trainer.final_loss),
        "val_nll": None if val_nll is None else _number(val_nll),
        "val_tokens": int((trainer.heldout[1] != PADDING).sum()),
        "initial_loss": _number(trainer.initial_loss),
        "best_val_nll": _number(trainer.evaluations.best),
        "best_iter": trainer.evaluations.best_iter,
        "diverged": trainer.diverged,
        "stopped_early": trainer.stopped_early,
        "parameters": parameters,
        "flops_per_token": flops_per_token,
        "peak_memory_bytes": peak_memory(trainer.device),
        "device": describe(trainer.device),
        "processes": trainer.strategy.world,
        "fingerprint": config.fingerprint(),
        **trainer.inputs,
        "skipped_documents": store.skipped,
        "corpus": asdict(corpus_usage.Usage.of(store, config.data)) if store.complete else None,
    }


def _number(value: float) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
