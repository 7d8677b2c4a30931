"""One run in its folder: claim it, resume, train, and leave a result."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablatrix.models.gpt import measure
from ablatrix.trainer import checkpoint, eval_context_lengths, failures
from ablatrix.trainer import resume as resuming
from ablatrix.trainer.callbacks import registry
from ablatrix.trainer.callbacks.base import Callback
from ablatrix.trainer.config import RunConfig, load
from ablatrix.trainer.data import batches as data
from ablatrix.trainer.data import corpus_usage, fingerprints, tokenizer
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.device import describe, pick_device, tune_products
from ablatrix.trainer.distributed import rank_info, strategies
from ablatrix.trainer.loop import Array, Trainer
from ablatrix.trainer.out_of_memory import peak_memory
from ablatrix.trainer.rundir import loss_digest, recorded_inputs, run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.console import start_logging
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import FULL, TRANSIENT, atomic_write
from ablatrix.trainer.rundir.run_files import best_is_valid_at
from ablatrix.trainer.signals import Interrupted, StopSignals

if TYPE_CHECKING:
    from ablatrix.trainer.distributed.process_group import Team

logger = logging.getLogger(__name__)

# What the lead of several processes tells the others: whether there is anything to do; the checkpoint to start from,
# '' for none; that all is written
GO, FROM, DONE = "go", "from", "done"


@dataclass
class Inputs:
    """What a run reads: its batches, the fixed evaluation set, and the checkpoint that was named to start from."""

    store: TokenStore
    batches: data.Batches
    heldout: tuple[Array, Array]
    start: dict[str, Any] | None
    custom: Sequence[Callback] = ()  # the user's callbacks

    @classmethod
    def open(cls, config: RunConfig, named: bool = True) -> Inputs:
        """Raises DataError where the file cannot serve this configuration, UserError where the checkpoint cannot.

        named: read the checkpoint that the configuration names.
        """
        resume = config.trainer.resume
        named = named and resume not in ("auto", "none")
        start = checkpoint.load(Path(resume), config.fingerprint_until) if named else None
        store = open_tokens(config.data, Path(config.system.cache_dir))
        batches = data.Batches(store, config.data, config.trainer.batch_size, config.system.seed)
        heldout = data.heldout_windows(store, config.data, config.trainer.eval_tokens)
        return cls(store, batches, heldout, start)


def execute(config: RunConfig, argv: list[str], signals: StopSignals) -> int:
    """Do the run that `config` describes and return its exit code. Raises AblatrixError and what else goes wrong.

    argv: the flags as they were given, for args.txt. Of several processes every one calls it.
    """
    place = rank_info.Place.of(config)
    start_logging(place.rank, place.world)
    if place.rank:
        return _follow(config, place, signals)
    run_dir = Path(config.system.work_dir)
    # A folder prepared for this very run hears of every failure; another run's folder is not written to
    there = _existing(run_dir)
    ours = there is not None and there.fingerprint() == config.fingerprint()
    attempt: Attempt | None = None
    if config.info.line():
        logger.info(config.info.line())
    try:
        config = config.resolved(_vocab_size(config))
        place.check(config)
        goes_on = resuming.find_step(run_dir, there, config)
        team = _join(place, config)
        if _already_finished(run_dir, config):
            if team:
                team.part(GO, False)
            return 0
        device = team.device if team else pick_device(config.trainer.device)
        tune_products(device)
        # Before the folder is made: a file that cannot be used leaves nothing behind
        inputs = Inputs.open(config)
        inputs.custom = registry.load_custom(config)
        if config.trainer.resume != "none":
            resuming.refuse_changed_inputs(config, run_dir / run_files.PROVENANCE, "it was submitted")
        attempt = _take(run_dir)
        ours = True
        _open_folder(run_dir, config, argv, goes_on)
        _describe_data(inputs.store, config)
        _tell(team, GO, True)
        return _train(attempt, config, inputs, device, signals, team)
    except (Exception, Interrupted) as error:
        told = failures.explained(error, run_dir, attempt, signals.received is not None)
        if ours:
            failures.record(told, run_dir, attempt, signals.name)
        if told is error:
            raise
        raise told from error


def _describe_data(store: TokenStore, config: RunConfig) -> None:
    """Log what the corpus holds and what of it is never trained on, where that is known."""
    if store.complete:
        text, warnings = corpus_usage.describe_usage(store, config.data)
        logger.info(text)
        for warning in warnings:
            logger.warning(warning)


def _vocab_size(config: RunConfig) -> int:
    return tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir)).vocab_size


def _existing(run_dir: Path) -> RunConfig | None:
    path = run_dir / run_files.CONFIG
    return load(path) if path.exists() else None


def _already_finished(run_dir: Path, config: RunConfig) -> bool:
    summary = run_files.read_json(run_dir / run_files.SUMMARY)
    if config.trainer.resume != "auto" or summary is None or summary.get("fingerprint") != config.fingerprint():
        return False
    resuming.refuse_changed_inputs(config, run_dir / run_files.SUMMARY, "it finished")
    logger.info(f"{run_dir}: already finished; --trainer.resume=none does it again")
    return True


def _take(run_dir: Path) -> Attempt:
    """Make the folder this trainer's. Raises UserError where it cannot be written."""
    try:
        return Attempt.take(run_dir)
    except OSError as error:
        if error.errno in FULL | TRANSIENT:
            raise
        where = error.filename if error.filename and os.path.lexists(error.filename) else run_dir  # what is in the way
        raise UserError(f"{where}: cannot be written: {error.strerror}; choose another --system.work_dir") from None


def _open_folder(run_dir: Path, config: RunConfig, argv: list[str], goes_on: int | None = None) -> None:
    """Make the folder ready for this attempt. goes_on: the step from which a run with other settings goes on."""
    if goes_on is not None:
        checkpoint.drop_after(run_dir, goes_on)
        summary = run_files.read_json(run_dir / run_files.SUMMARY)
        if summary and not best_is_valid_at(summary, goes_on, config.trainer.eval_interval):
            (run_dir / run_files.BEST).unlink(missing_ok=True)
        _forget_result(run_dir, everything=False)
    command = shlex.join([sys.executable, "-m", "ablatrix.trainer", *argv]) + "\n"
    there = _existing(run_dir)
    if there is None or there.fingerprint() != config.fingerprint():  # not there, or its sizes not filled in
        atomic_write(run_dir / run_files.CONFIG, config.to_json())
    atomic_write(run_dir / run_files.ARGS, command)
    checkpoint.sweep(run_dir)
    if config.trainer.resume != "auto":
        _forget_result(run_dir, everything=config.trainer.resume == "none")


def _forget_result(run_dir: Path, everything: bool) -> None:
    more = (run_files.BEST, run_files.METRICS, run_files.STOP_REQUEST, run_files.SAVE_REQUEST)
    for name in (run_files.SUMMARY, run_files.MODEL, *(more if everything else ())):
        (run_dir / name).unlink(missing_ok=True)
    for path in checkpoint.checkpoints(run_dir) if everything else []:
        path.unlink()


def _join(place: rank_info.Place, config: RunConfig) -> Team | None:
    """The processes of this run, once all are there; None where this one is alone."""
    if place.world == 1:
        return None
    from ablatrix.trainer.distributed.process_group import Team  # torch.distributed takes a while to import

    return Team.join(place, config)


def _tell(team: Team | None, key: str, value: Any) -> None:
    if team:
        team.tell(key, value)


def _make_trainer(config: RunConfig, inputs: Inputs, device: torch.device, team: Team | None) -> Trainer:
    source = partial(data.prefetch, inputs.batches, workers=config.trainer.num_workers)
    trainer = Trainer(config, source, inputs.heldout, device, strategies.make(config, device, team))
    trainer.inputs = {**fingerprints.of_inputs(config), recorded_inputs.DATA: inputs.store.fingerprint}
    return trainer


def _train(
    attempt: Attempt,
    config: RunConfig,
    inputs: Inputs,
    device: torch.device,
    signals: StopSignals,
    team: Team | None = None,
) -> int:
    run_dir = attempt.run_dir
    trainer = _make_trainer(config, inputs, device, team)
    start, inputs.start = inputs.start, None  # as large as the model and its optimiser: not kept while training
    origin = resuming.restore(trainer, run_dir, start)
    del start
    _tell(team, FROM, str((run_dir / origin).absolute()) if origin else "")
    registry.attach(trainer, attempt, signals, inputs.custom)
    where = describe(device) + (f" x {team.world} processes ({trainer.strategy.name})" if team else "")
    event = "resumed" if origin else "started"
    fields = {"start": attempt.number, "iter": trainer.iter, "device": where}
    append_event(run_dir, event, **fields, **({"file": origin} if origin else {}))
    parameters, _ = measure(config.model)
    logger.info(f"{event} at iter {trainer.iter}: {parameters:,} parameters on {where} in {run_dir}")

    signals.training = True
    trainer.run()
    if not trainer.finished:
        by = trainer.stopped_by or "another process"
        # Slurm's warning asks for a requeue, also where only another process has got it; a person's file does not
        requeue = trainer.stopped_by in ("", signals.name)
        append_event(run_dir, "stopped", iter=trainer.iter, by=by, requeue=requeue)
        logger.info(f"stopped by {by} after iter {trainer.iter}; start again to continue")
        trainer.trigger("close")
        return run_files.EXIT_STOPPED
    _finish(attempt, trainer, inputs.store)
    trainer.trigger("close")
    if team:
        team.part(DONE, True)
    return 0


def _follow(config: RunConfig, place: rank_info.Place, signals: StopSignals) -> int:
    """The run in a process that is not the lead: it computes its share and writes nothing but why it failed."""
    run_dir, training = Path(config.system.work_dir), False
    try:
        config = config.resolved(_vocab_size(config))
        place.check(config)
        team = _join(place, config)
        assert team
        if not team.hear(GO):
            return 0
        training = True
        tune_products(team.device)
        inputs = Inputs.open(config, named=False)
        trainer = _make_trainer(config, inputs, team.device, team)
        origin = team.hear(FROM)
        if origin:
            resuming.load(trainer, checkpoint.load(Path(origin), config.fingerprint_until, own=True), origin)
        trainer.add_callback(Follower(signals))
        signals.training = True
        trainer.run()
        if not trainer.finished:
            return run_files.EXIT_STOPPED
        if not trainer.diverged:
            trainer.result()
            eval_context_lengths.evaluate(trainer, inputs.store)
        team.hear(DONE)  # where one process has ended, a scheduler may end the others
        return 0
    except Exception as error:
        told = failures.explained(error, run_dir, None, signals.received is not None)
        if training and not isinstance(told, rank_info.PeerLostError | Interrupted):
            failures.note(run_dir, "failed", reason=f"process {place.rank}: {str(told).strip() or type(told).__name__}")
        if told is error:
            raise
        raise told from error


class Follower(Callback):
    """What a process other than rank 0 does at the events: its part of what rank 0 writes."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: Trainer) -> None:
        self.on_batch_end(trainer)

    def on_batch_end(self, trainer: Trainer) -> None:
        trainer.stop_requested = trainer.stop_requested or self.signals.received is not None

    def on_checkpoint(self, trainer: Trainer) -> None:
        trainer.state()

    def on_row(self, trainer: Trainer) -> None:
        if trainer.config.trainer.save_best and trainer.val_loss is not None:
            trainer.weights()


def _finish(attempt: Attempt, trainer: Trainer, store: TokenStore) -> None:
    """Write model.pt and then summary.json, which says that the run is done."""
    run_dir, config = attempt.run_dir, trainer.config
    val_nll, by_block = None, {}
    if not trainer.diverged:
        val_nll, weights = trainer.result()
        checkpoint.save_torch(run_dir / run_files.MODEL, weights, attempt.require)
        by_block = eval_context_lengths.evaluate(trainer, store)
        for length, found in by_block.items():
            if found["nll"] is None:
                logger.info(f"held-out NLL at {length} tokens of context: not evaluated: {found['why']}")
    parameters, flops_per_token = measure(config.model)
    summary = {
        "iters": trainer.iter,
        "max_iters": config.trainer.max_iters,
        "tokens": trainer.tokens,
        "seconds": round(trainer.seconds, 3),
        "final_loss": _number(trainer.final_loss),
        "val_nll": None if val_nll is None else _number(val_nll),
        "val_tokens": int((trainer.heldout[1] != -1).sum()),
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
        loss_digest.KEY: loss_digest.describe(run_dir),
        "corpus": _usage(store, config),
        **({"val_nll_by_block": by_block} if by_block else {}),
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    atomic_write(run_dir / run_files.SUMMARY, text, guard=attempt.require)
    files = run_files.list_files(run_dir)
    failures.note(run_dir, "finished", iter=trainer.iter, diverged=trainer.diverged, files=files)
    if not isinstance(store, CompleteStore):  # its cache was built meanwhile
        _describe_data(store, config)
    outcome = "diverged" if trainer.diverged else "stopped early" if trainer.stopped_early else "finished"
    logger.info(f"{outcome} after iter {trainer.iter}: val_nll {summary['val_nll']}, {trainer.seconds:.1f} s")


def _usage(store: TokenStore, config: RunConfig) -> dict[str, int] | None:
    return asdict(corpus_usage.Usage.of(store, config.data)) if store.complete else None


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None
