"""Resume a run from its own checkpoint, from a named one, or as a longer run; never on different data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import RunConfig, run_hash
from ablatrix.trainer.config.optimization import schedule_name, steady_until
from ablatrix.trainer.data import fingerprints
from ablatrix.trainer.out_of_memory import first_line, is_out_of_memory
from ablatrix.trainer.rundir import loss_csv, recorded_inputs, run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import atomic_write, read_text_strict

if TYPE_CHECKING:
    from ablatrix.trainer.loop import Trainer

logger = logging.getLogger(__name__)

SHOWN = 4  # number of differing settings to show


def find_step(run_dir: Path, there: RunConfig | None, config: RunConfig) -> int | None:
    """Return the step from which a folder's run can continue with different settings, such as more steps.

    there: the folder's configuration, None if it has none. Returns None unless its settings differ. Raises UserError if
    the run cannot continue.
    """
    if there is None:
        return None
    assert config.model.vocab_size
    there = there.resolved(config.model.vocab_size, config.data.separator)
    if there.fingerprint() == config.fingerprint():
        return None
    steps = [run_files.checkpoint_step(path) for path in checkpoint.checkpoints(run_dir)]
    for step in steps if config.trainer.resume == "auto" else []:
        if step <= config.trainer.max_iters and there.fingerprint_until(step) == config.fingerprint_until(step):
            return step
    raise UserError(
        f"{run_dir} contains a run with a different configuration ({_describe(there.identity(), config.identity())})"
        f"{_explain_schedule(there, config, steps)}; choose another --system.work_dir, or remove that folder"
    )


def _explain_schedule(there: RunConfig, config: RunConfig, steps: Sequence[int]) -> str:
    """If the run differs only in having more steps, return why it cannot continue, else ''."""
    same = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"max_iters": there.trainer.max_iters})}
    )
    longer = config.trainer.max_iters > there.trainer.max_iters
    if not (steps and longer and same.identity_until(0) == there.identity_until(0)):
        return ""
    return (
        f", and cannot continue: with schedule {schedule_name(there.trainer)} the learning rates after step "
        f"{steady_until(there.trainer)} depend on trainer.max_iters, its oldest checkpoint is from step {min(steps)}"
    )


def _describe(there: dict[str, Any], here: dict[str, Any]) -> str:
    found = [f"{key}: {one} there, {other} here" for key, (one, other) in run_hash.differences(there, here).items()]
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def refuse_changed_inputs(config: RunConfig, record: Path, event: str) -> None:
    """Raise UserError if the corpus, tokenizer or initial weights have changed since a JSON record of the run."""
    before = run_files.read_json(record) or {}
    if recorded_inputs.SETTINGS.keys() & before.keys():
        _refuse_changed(before, fingerprints.of_inputs(config), config, record.parent, event)


def _refuse_changed(
    before: dict[str, Any], now: dict[str, str], config: RunConfig, where: Path | str, event: str
) -> None:
    changed = recorded_inputs.changed(before, now)
    if changed:
        names = " and ".join(f"{name} ({attrgetter(name)(config)})" for name in changed)
        raise UserError(
            f"{where}: the content of {names} has changed since {event}; restore the old file, or train from the "
            "start: with --trainer.resume=none, or with `submit --rerun RUN` in a study"
        )


def restore(trainer: Trainer, run_dir: Path, start: dict[str, Any] | None) -> str:
    """Load the run's checkpoint into the trainer and return the checkpoint's name, '' if there is none.

    start: state from the checkpoint that `trainer.resume` names. Raises UserError if a state does not fit.
    """
    resume = trainer.config.trainer.resume
    if resume == "none":
        return ""
    if start is not None:
        named = checkpoint.find_named(resume)
        load(trainer, start, named)
        checkpoint.drop_after(run_dir, trainer.iter)  # later checkpoints no longer belong to this run
        _copy_rows(named.parent, run_dir, trainer.rows_until(trainer.iter))
        return str(named)
    found = checkpoint.newest(run_dir, trainer.config.fingerprint_until)
    if found is None:
        return ""
    state, path = found
    missing = loss_csv.count_missing_rows(run_dir, trainer.rows_until(int(state["step"])))
    if missing:  # rows were removed: the result would have a gap
        what = f"lacks {count(missing, 'row')} before {path.name}"
        logger.warning(f"{run_dir / run_files.LOSS}: {what}; the run starts from the beginning")
        for each in checkpoint.checkpoints(run_dir):
            checkpoint.set_aside(each)
        return ""
    load(trainer, state, path)
    return path.name


def _copy_rows(source: Path, run_dir: Path, steps: set[int]) -> None:
    """Copy the rows up to a named checkpoint from that checkpoint's run, if this run has no rows yet."""
    if not (run_dir / run_files.LOSS).exists() and not loss_csv.count_missing_rows(source, steps):
        atomic_write(run_dir / run_files.LOSS, read_text_strict(source / run_files.LOSS))


def load(trainer: Trainer, state: dict[str, Any], origin: Path | str) -> None:
    """Load a checkpoint's state.

    Raises UserError if it was trained on different data, or does not fit the model (a different version, or edited).
    """
    before = state.get("inputs", {})
    event = f"step {state['step']} was trained"
    _refuse_changed(before if isinstance(before, dict) else {}, trainer.inputs, trainer.config, origin, event)
    try:
        trainer.load_state(state)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        # subclasses of RuntimeError indicate a failing device
        if is_out_of_memory(error) or (isinstance(error, RuntimeError) and type(error) is not RuntimeError):
            raise
        raise UserError(
            f"{origin} does not fit this run ({type(error).__name__}: {first_line(error)}); remove it, or use another"
        ) from error
