"""A training run: join the other processes, claim the folder, resume, train, and write the result."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.models.gpt import measure
from ablatrix.trainer import checkpoint, eval_context_lengths, failures, initial_weights, run_folder
from ablatrix.trainer import resume as resuming
from ablatrix.trainer.callbacks import registry
from ablatrix.trainer.callbacks.base import Callback
from ablatrix.trainer.data import batches as data
from ablatrix.trainer.data import corpus_usage, fingerprints, tokenizer
from ablatrix.trainer.data.corpus_settings import follow_corpus
from ablatrix.trainer.data.heldout_records import read_records
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore
from ablatrix.trainer.device import describe, pick_device, product_type, share_of_machine, tune_products
from ablatrix.trainer.distributed import strategies
from ablatrix.trainer.distributed.rank_info import PeerLostError, RankInfo
from ablatrix.trainer.inputs import Inputs
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.console import start_logging
from ablatrix.trainer.rundir.events import append_event, note
from ablatrix.trainer.signals import Interrupted, StopSignals
from ablatrix.trainer.summary import write_result

if TYPE_CHECKING:
    import torch

    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.distributed.process_group import ProcessGroup
    from ablatrix.trainer.rundir.attempts import Attempt

logger = logging.getLogger(__name__)

# Messages from rank 0: GO: NEW, RESUMED, or '' to exit; FROM: the checkpoint to start from, or ''; DONE: all is done
GO, FROM, DONE = "go", "from", "done"
NEW, RESUMED = "new", "resumed"


def execute(config: RunConfig, argv: list[str], signals: StopSignals) -> int:
    """Execute the run that `config` describes and return its exit code. Raises AblatrixError, among others.

    argv: the flags, for args.txt. Every process of the run calls this.
    """
    ranks = RankInfo.from_environment(config)
    start_logging(ranks.rank, ranks.world)
    if ranks.rank:
        return _run_other_rank(config, ranks, signals)
    run_dir = Path(config.system.work_dir)
    # Failures are recorded only in a folder that was prepared for this very run, not in another run's folder
    there = run_folder.read_config(run_dir)
    ours = there is not None and there.fingerprint() == config.fingerprint()
    attempt: Attempt | None = None
    if config.info.line():
        logger.info(config.info.line())
    try:
        config = _resolve(config)
        ranks.check(config)
        branch = resuming.find_step(run_dir, there, config)
        group = _join(ranks, config)
        if run_folder.is_finished(run_dir, config):
            if group:
                group.broadcast_last(GO, "")
            return 0
        device = group.device if group else pick_device(config.trainer.device)
        tune_products(device, Path(config.system.cache_dir))
        # Before the folder is created, so that an unusable file leaves nothing behind
        if not checkpoint.checkpoints(run_dir):
            initial_weights.require(config)
        inputs = Inputs.open(config)
        inputs.custom = registry.load_custom(config)
        corpus = config.data.test_corpus if config.data.test_file else config.data
        inputs.records = read_records(corpus, Path(config.system.cache_dir), inputs.text, inputs.heldout)
        if config.trainer.resume != "none":
            resuming.refuse_changed_inputs(config, run_dir / run_files.PROVENANCE, "it was submitted")
        attempt = run_folder.claim(run_dir)
        ours = True
        run_folder.prepare(run_dir, config, argv, branch)
        _log_data_usage(inputs.store, config)
        return _train(attempt, config, inputs, device, signals, group=group)
    except (Exception, Interrupted) as error:
        shown = failures.explain(error, run_dir, attempt, signals.received is not None)
        if ours:
            failures.record(shown, run_dir, attempt, signals.name)
        if shown is error:
            raise
        raise shown from error


def _train(
    attempt: Attempt,
    config: RunConfig,
    inputs: Inputs,
    device: torch.device,
    signals: StopSignals,
    *,
    group: ProcessGroup | None,
) -> int:
    run_dir = attempt.run_dir
    resumed = inputs.start is not None or bool(checkpoint.checkpoints(run_dir))
    if group:
        group.broadcast(GO, RESUMED if resumed else NEW)
    trainer = _make_trainer(config, inputs, device, group, resumed=resumed)
    start, inputs.start = inputs.start, None  # drop the reference: the state is as large as the model and its optimizer
    origin = resuming.restore(trainer, run_dir, start)
    del start
    if group:
        group.broadcast(FROM, str((run_dir / origin).absolute()) if origin else "")
    if resumed and not origin:  # none of its checkpoints can be used
        trainer = _make_trainer(config, inputs, device, group)
    registry.attach(trainer, attempt, signals, inputs.custom)
    where = describe(device) + (f" x {group.world} processes ({trainer.strategy.name})" if group else "")
    if config.trainer.dtype == "auto":
        where += f", {product_type(config.trainer.dtype, device)} products"
    event = "resumed" if origin else "started"
    share = share_of_machine(device, trainer.strategy.world)
    fields = {"start": attempt.number, "iter": trainer.iter, "device": where, **share}
    append_event(run_dir, event, **fields, **({"file": origin} if origin else {}))
    parameters, _ = measure(config.model)
    logger.info(f"{event} at iter {trainer.iter}: {parameters:,} parameters on {where} in {run_dir}")

    signals.training = True
    trainer.run()
    if not trainer.finished:
        return _record_stop(trainer, run_dir, signals)
    write_result(attempt, trainer, inputs)
    if not isinstance(inputs.store, CompleteStore):  # the cache was built during training
        _log_data_usage(inputs.store, config)
    trainer.trigger("close")
    if group:
        group.broadcast_last(DONE, True)
    return 0


def _record_stop(trainer: Trainer, run_dir: Path, signals: StopSignals) -> int:
    by = trainer.stopped_by or "another process"
    # Slurm's warning signal requests a requeue, even if only another process received it; a user's file does not
    requeue = trainer.stopped_by in ("", signals.name)
    append_event(run_dir, "stopped", iter=trainer.iter, by=by, requeue=requeue)
    logger.info(f"stopped by {by} after iter {trainer.iter}; start again to continue")
    trainer.trigger("close")
    return run_files.EXIT_STOPPED


def _run_other_rank(config: RunConfig, ranks: RankInfo, signals: StopSignals) -> int:
    """Run a process other than rank 0, which computes its share and writes nothing but the reason of a failure."""
    run_dir, training = Path(config.system.work_dir), False
    try:
        config = _resolve(config)
        ranks.check(config)
        group = _join(ranks, config)
        assert group
        how = group.receive(GO)
        if not how:
            return 0
        training = True
        tune_products(group.device, Path(config.system.cache_dir))
        inputs = Inputs.open(config, named=False)
        trainer = _make_trainer(config, inputs, group.device, group, resumed=how == RESUMED)
        origin = group.receive(FROM)
        if how == RESUMED and not origin:
            trainer = _make_trainer(config, inputs, group.device, group)
        if origin:
            resuming.load(trainer, checkpoint.load(Path(origin), config.fingerprint_until), origin)
        trainer.add_callback(OtherRank(signals))
        signals.training = True
        trainer.run()
        if not trainer.finished:
            return run_files.EXIT_STOPPED
        if not trainer.diverged:
            trainer.result()
            eval_context_lengths.evaluate(trainer, inputs.text)
        group.receive(DONE)  # a scheduler may kill all processes once one has exited
        return 0
    except Exception as error:
        shown = failures.explain(error, run_dir, None, signals.received is not None)
        if training and not isinstance(shown, PeerLostError | Interrupted):
            reason = f"process {ranks.rank}: {str(shown).strip() or type(shown).__name__}"
            note(run_dir, "failed", reason=reason)
        if shown is error:
            raise
        raise shown from error


class OtherRank(Callback):
    """Joins in the collective calls that rank 0's callbacks make; for all other processes."""

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


def _make_trainer(
    config: RunConfig, inputs: Inputs, device: torch.device, group: ProcessGroup | None, *, resumed: bool = False
) -> Trainer:
    """Return the trainer of this process. resumed: a checkpoint will be loaded, so `model.init_from` is not read."""
    source = partial(data.prefetch, inputs.batches, workers=config.trainer.num_workers)
    drawn = config.model.model_copy(update={"init_from": None} if resumed else {})
    strategy = strategies.make(config.model_copy(update={"model": drawn}), device, group)
    trainer = Trainer(config, source, inputs.heldout.pair, device, strategy)
    trainer.inputs = {**fingerprints.of_inputs(config), recorded_inputs.DATA: inputs.store.fingerprint}
    return trainer


def _join(ranks: RankInfo, config: RunConfig) -> ProcessGroup | None:
    """Connect the processes of this run; return None if there is only one."""
    if ranks.world == 1:
        return None
    from ablatrix.trainer.distributed.process_group import ProcessGroup  # torch.distributed is slow to import

    return ProcessGroup.join(ranks, config)


def _resolve(config: RunConfig) -> RunConfig:
    vocabulary = tokenizer.vocabulary(config.data, Path(config.system.cache_dir))
    return follow_corpus(config).resolved(*vocabulary)


def _log_data_usage(store: TokenStore, config: RunConfig) -> None:
    """Log what the corpus contains and which part of it is never trained on, if known."""
    if store.complete:
        text, warnings = corpus_usage.describe_usage(store, config.data)
        logger.info(text)
        for warning in warnings:
            logger.warning(warning)
