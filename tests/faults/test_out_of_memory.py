"""A step that does not fit into memory is done again in smaller parts; the numbers are the same."""

from __future__ import annotations

import copy
import math
import shutil
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.loop import Array, Trainer
from ablatrix.trainer.out_of_memory import is_out_of_memory, largest_part, more_parts
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import read_events
from tests.faults.actions import train_within
from tests.faults.conftest import Trainers
from tests.faults.nursery import Child
from tests.support.callbacks import at
from tests.support.waiting import last_step, wait_for
from tests.support.workspace import without_clock

BLOCK, VOCAB, BATCH = 8, 17, 8


def small(**settings: Any) -> Trainer:
    sizes = {"model_type": None, "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": VOCAB, "block_size": BLOCK}
    dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), settings.pop("dropout", 0.0))
    config = RunConfig.model_validate(
        {
            "data": {"file_path": "x", "block_size": BLOCK},
            "model": {**sizes, **dropout},
            "trainer": {"max_iters": 12, "batch_size": BATCH, "log_interval": 1, "eval_interval": 5, **settings},
        }
    )

    def source(start: int, stop: int) -> Iterator[tuple[Array, Array]]:
        for i in range(start, stop):
            tokens = np.random.Generator(np.random.Philox(key=i)).integers(0, VOCAB, (BATCH, BLOCK + 1))
            yield tokens[:, :-1].copy(), tokens[:, 1:].copy()

    return Trainer(config, source, next(source(99, 100)))


def fits_only(run: Trainer, windows: int, from_step: int = 0, evaluating: bool = False) -> None:
    """From that step on, more windows at a time ask the allocator for more than any machine has."""
    name = "token_losses" if evaluating else "loss"
    method = getattr(run.model, name)

    def checked(idx: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(idx) > windows and run.iter >= from_step:
            torch.empty(1 << 50)
        result: Tensor = method(idx, *args, **kwargs)
        return result

    setattr(run.model, name, checked)


def trained(run: Trainer) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    run.add_callback(
        at("on_row", lambda t: rows.append({k: t.row[k] for k in ("iter", "loss", "val_loss", "grad_norm")}))
    )
    run.run()
    return rows


def assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [r["iter"] for r in ours] == [r["iter"] for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["val_loss"] == (b["val_loss"] and pytest.approx(b["val_loss"], rel=1e-5))
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 57)
    assert is_out_of_memory(numpys.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("out of memory"))


@pytest.mark.parametrize("batch_size", [1, 5, 6, 8, 96])
def test_parts_halve_down_to_one_window(batch_size: int) -> None:
    parts, sizes = 1, [batch_size]
    while (more := more_parts(batch_size, parts)) is not None:
        assert more > parts
        parts = more
        sizes.append(largest_part(batch_size, parts))
        pieces = torch.arange(batch_size).tensor_split(parts)
        assert max(map(len, pieces)) == sizes[-1] and min(map(len, pieces)) >= 1
    assert sizes[-1] == 1
    assert all(after <= before / 2 for before, after in pairwise(sizes))


@pytest.mark.parametrize(("windows", "parts"), [(4, 2), (3, 4), (1, 8)])
@pytest.mark.slow
def test_same_numbers_in_smaller_parts(windows: int, parts: int) -> None:
    expected = trained(small())
    run, shown = small(), list[tuple[int, int]]()
    fits_only(run, windows, from_step=4)
    run.add_callback(at("on_out_of_memory", lambda t: shown.append((t.iter, t.parts))))
    assert_close(trained(run), expected)
    assert shown == [(4, 2), (4, 4), (4, 8)][: int(math.log2(parts))] and run.parts == parts


def test_evaluation_that_does_not_fit_is_done_in_parts() -> None:
    whole, run = small(), small()
    fits_only(run, 3, evaluating=True)
    expected = trained(whole)
    assert_close(trained(run), expected)
    assert run.parts == 1
    fits_only(run, 0, evaluating=True)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run.evaluate()


def test_other_errors_are_not_caught() -> None:
    run = small()

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.model.loss = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="mat1"):
        run.run()
    assert run.parts == 1


@pytest.mark.slow
def test_one_window_that_does_not_fit_is_a_clear_end() -> None:
    run = small()
    fits_only(run, 0, from_step=3)
    with pytest.raises(RunError, match=r"^step 4: out of memory with a single window.*data.block_size.*slurm.mem"):
        run.run()


def test_resumed_with_the_same_parts_and_the_same_dropout() -> None:
    """Killed after it had run out of memory; what comes after the resume equals what would have come, bit for bit."""
    whole, saved = small(dropout=0.2, ckpt_interval=6), list[dict[str, Any]]()
    fits_only(whole, 4, from_step=4)
    whole.add_callback(at("on_checkpoint", lambda t: saved.append(copy.deepcopy(t.state()))))
    expected = trained(whole)
    again = small(dropout=0.2, ckpt_interval=6)  # on a machine with more memory
    again.load_state(saved[0])
    assert again.iter == 6 and again.parts == 2
    assert trained(again) == expected[6:]
    assert expected[3:] != trained(small(dropout=0.2))[3:]  # else the parts would not have mattered


BIG = {
    "data__block_size": 64, "model__n_layer": 4, "model__n_embd": 128, "trainer__batch_size": 64,
    "trainer__max_iters": 8, "trainer__log_interval": 1, "trainer__eval_tokens": 640,
    "trainer__ckpt_interval": 2, "model__resid_pdrop": 0.1,
}  # fmt: skip


def within(trainers: Trainers, name: str, extra: int, **settings: Any) -> Child:
    """A trainer that may take `extra` more bytes than before its first step; its growth goes to `name`.grown."""
    argv, report = trainers.argv(name, **{**BIG, **settings}), str(trainers.folder / f"{name}.grown")
    return trainers.nursery.start(train_within, argv, extra, report, log=trainers.folder / f"{name}.out")


def is_saved(run: Path) -> bool:
    """Is there a checkpoint since memory ran out last? What is not in one does not outlive a kill."""
    shown = [event["event"] for event in read_events(run) if event["event"] in ("out_of_memory", "checkpoint")]
    return shown[-1:] == ["checkpoint"]


def test_a_real_limit(trainers: Trainers) -> None:
    """The operating system refuses more address space (RLIMIT_AS): smaller parts, which outlive a kill and the limit.

    Then with so little that not even one window fits.
    """
    free = within(trainers, "free", 0, trainer__max_iters=2)
    assert free.wait() == 0, free.log.read_text()
    growth = int((trainers.folder / "free.grown").read_text())

    run, child = trainers.folder / "run", within(trainers, "run", int(growth * 0.7))
    wait_for(lambda: (last_step(run) >= 3 and is_saved(run)) or child.poll() is not None)
    child.send(signal.SIGKILL)
    said = child.log.read_text()
    assert child.wait() == -signal.SIGKILL, said
    met = [r["micro_batch"] for r in read_events(run) if r["event"] == "out_of_memory"]
    assert met and met == [32, 16, 8][: len(met)]
    assert "out of memory in step 1: from now on each batch is processed in micro-batches of 32 windows" in said
    shutil.copytree(run, trainers.folder / "again")
    for name in ("run", "again"):
        trainers.finish(name, **BIG)
        assert sum(r["event"] == "out_of_memory" for r in read_events(trainers.folder / name)) == len(met)
        newest = torch.load(checkpoint.checkpoints(trainers.folder / name)[0], weights_only=True)
        assert largest_part(64, newest["progress"]["parts"]) == met[-1]
    assert without_clock(run) == without_clock(trainers.folder / "again")

    # gradients alone are larger than what the allocator has in reserve
    hopeless = within(trainers, "hopeless", 2 << 20, model__n_embd=768, trainer__batch_size=4)
    assert hopeless.wait() == 1
    said = hopeless.log.read_text()
    assert "Traceback" not in said and "error: step 1: out of memory with a single window of the batch" in said
    last = read_events(trainers.folder / "hopeless")[-1]
    assert last["event"] == "failed" and "lower data.block_size" in last["reason"] and "slurm.mem" in last["reason"]
