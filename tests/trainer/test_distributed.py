"""Runs shared by two processes on this machine: the results of one process, through kills and changes of strategy."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.distributed.rank_info import RankInfo
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import read_events
from tests.support.forked_python import ForkedPython
from tests.support.ranks import ended, flags, ranks
from tests.support.waiting import wait_for
from tests.support.workspace import without_clock
from tests.trainer.distributed_worker import HALF, RECOMPUTED, STEPS, VARIANTS, settings, train


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes have made of the same run with each strategy."""
    out = tmp_path_factory.mktemp("parallel") / "found.pt"
    ended(ranks(["-m", "tests.trainer.distributed_worker", str(out), *VARIANTS], cwd=code_root()), [0, 0])
    loaded: dict[str, Any] = torch.load(out, weights_only=True)
    return loaded


def numbers(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[row["loss"], row["grad_norm"], row["val_loss"] or 0.0] for row in rows], dtype=torch.float64)


# A pipeline's masks are drawn part by part
SAME_MASKS = [variant for variant in VARIANTS if not variant.startswith("1f1b-dropout")]


@pytest.mark.parametrize("variant", SAME_MASKS)
@pytest.mark.xdist_group("parallel")
@pytest.mark.slow
def test_equals_one_process(found: dict[str, Any], variant: str) -> None:
    """Key biases are not compared: softmax cancels them, so that their gradients are rounding errors (about 1e-11 where
    others are 1e-4). Adam turns these into steps of 1e-5 that depend on the processor.
    """
    alone, shared = train(settings(variant, alone=True), None), found[variant]
    assert [row["iter"] for row in shared["rows"]] == [row["iter"] for row in alone["rows"]]
    torch.testing.assert_close(numbers(shared["rows"]), numbers(alone["rows"]), rtol=0, atol=1e-5)
    assert shared["nll"] == pytest.approx(alone["nll"], abs=1e-5)
    torch.testing.assert_close(shared["windows"], alone["windows"], rtol=0, atol=1e-4)
    assert list(shared["state"]["model"]) == list(alone["state"]["model"])
    for name, weight in alone["state"]["model"].items():
        compared = slice(None)
        if name.endswith("c_attn.bias"):
            width = len(weight) // 3
            compared = [*range(width), *range(2 * width, 3 * width)]
        torch.testing.assert_close(shared["state"]["model"][name][compared], weight[compared], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.xdist_group("parallel")
@pytest.mark.slow
def test_resumed_equals_untouched(found: dict[str, Any], variant: str) -> None:
    shared = found[variant]
    assert len(shared["rows"]) == STEPS
    assert shared["resumed"]["rows"] == shared["rows"][HALF:]
    for name, weight in shared["state"]["model"].items():
        assert torch.equal(shared["resumed"]["state"]["model"][name], weight), name


@pytest.mark.parametrize("variant", RECOMPUTED)
@pytest.mark.slow
def test_recomputed_blocks_change_no_bit(found: dict[str, Any], variant: str) -> None:
    recomputed, kept = found[variant], found[RECOMPUTED[variant]]
    assert recomputed["rows"] == kept["rows"]
    assert all(torch.equal(recomputed["state"]["model"][name], w) for name, w in kept["state"]["model"].items())


@pytest.mark.parametrize("variant", SAME_MASKS)
@pytest.mark.xdist_group("parallel")
@pytest.mark.slow
def test_a_state_goes_on_in_one_process(found: dict[str, Any], variant: str) -> None:
    shared = found[variant]
    alone = train(settings(variant, alone=True), None, shared["half"])
    torch.testing.assert_close(numbers(alone["rows"]), numbers(shared["rows"][HALF:]), rtol=0, atol=1e-5)


def events(run_dir: Path) -> list[str]:
    return [event["event"] for event in read_events(run_dir)]


def after(run_dir: Path, step: int) -> None:
    wait_for(lambda: len(loss_csv.parse_rows(run_files.read_text(run_dir / run_files.LOSS))) >= step)


@pytest.mark.slow
def test_kills_and_signals_of_single_processes(
    corpus: Path, offline_cache: Path, tmp_path: Path, forked_python: ForkedPython
) -> None:
    """A dead process ends the others; a signal that one gets stops all; the loss curve is that of an untouched run."""
    untouched, hit = tmp_path / "untouched", tmp_path / "hit"

    def start(run_dir: Path) -> list[subprocess.Popen[str]]:
        return ranks(flags(corpus, offline_cache, run_dir), python=forked_python.python)

    ended(start(untouched), [0, 0])
    first = start(hit)
    after(hit, 22)
    first[1].kill()
    shown, _ = ended(first, [run_files.EXIT_LOST_PEER, -signal.SIGKILL])
    assert "another process of this run has ended" in shown and "Traceback" not in shown
    assert events(hit)[-1] == "lost_peer"
    second = start(hit)
    after(hit, 24)
    second[1].send_signal(signal.SIGUSR2)
    ended(second, [run_files.EXIT_STOPPED] * 2)
    assert events(hit)[-1] == "stopped"
    ended(start(hit), [0, 0])
    assert without_clock(hit) == without_clock(untouched)
    assert (run_files.read_json(hit / run_files.SUMMARY) or {})["processes"] == 2
    outputs = ended(start(hit), [0, 0])
    assert "already finished" in outputs[0] and outputs[1] == ""


def test_what_cannot_be_shared_is_refused() -> None:
    ranks = RankInfo(0, 3, 0)
    with pytest.raises(UserError, match=r"batch_size: 4 windows cannot be split evenly among 3 processes"):
        ranks.check(settings("ddp"))
    with pytest.raises(UserError, match=r"grad_accum: 4 exceeds the 2 windows"):
        RankInfo(0, 2, 0).check(settings("ddp", grad_accum=4))
    with pytest.raises(UserError, match=r"muon needs whole matrices"):
        RankInfo(0, 2, 0).check(settings("fsdp", optimizer="muon"))
    with pytest.raises(UserError, match=r"sample_interval: with fsdp no process has the whole model"):
        RankInfo(0, 2, 0).check(settings("fsdp", sample_interval=2))
    for problem, more in {
        "2 layers cannot be split into 3 stages": {"batch_size": 6},
        "4 windows cannot be cut into 3 equal micro-batches": {"pipeline_microbatches": 3},
        "1f1b needs at least as many as there are processes .3., got 2": {"pipeline_microbatches": 2},
        "pipeline_split: 1,1 does not divide 2 layers among 3 stages": {"pipeline_split": (1, 1)},
        "2 layers cannot be split into 6 stages; use fewer processes or": {"pipeline_stages_per_rank": 2},
        "microbatches: 10 cannot be interleaved by 3 processes; use a multiple of 3": {
            "pipeline_stages_per_rank": 2,
            "pipeline_microbatches": 10,
            "batch_size": 10,
        },
        "2 stages are interleaved by trainer.pipeline_schedule 1f1b only": {
            "pipeline_stages_per_rank": 2,
            "pipeline_schedule": "gpipe",
        },
        "grad_accum: 2, but a pipeline cuts": {"grad_accum": 2},
        "tie_embeddings: the embeddings and the head are in different": {"model": {"tie_embeddings": True}},
    }.items():
        with pytest.raises(UserError, match=problem):
            ranks.check(settings("1f1b", **more))
    with pytest.raises(UserError, match=r"2 processes were started, but trainer.strategy is single"):
        RankInfo.from_environment(settings(), {"RANK": "0", "WORLD_SIZE": "2"})
    assert RankInfo.from_environment(settings(), {}) == RankInfo()


@pytest.mark.parametrize(
    ("model", "stages", "sizes"),
    [({"model_type": "gpt2-xl"}, 4, [13, 13, 13, 9]), ({"model_type": "gpt-mini"}, 3, [3, 2, 1]), ({}, 2, [1, 1])],
)
def test_stages_are_those_asked_for_or_take_about_as_long(model: dict[str, Any], stages: int, sizes: list[int]) -> None:
    config = settings(
        "1f1b", model=dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size")) | model if model else {}
    )
    resolved = config.model_copy(update={"model": config.model.resolved(50257, 8)})
    from ablatrix.trainer.distributed.pipeline import split  # imports torch.distributed.pipelining: a second

    layers = split(resolved, stages)
    assert [len(part) for part in layers] == sizes
    assert [layer for part in layers for layer in part] == list(range(sum(sizes)))
    assert split(settings("gpipe"), 2) == [range(2), range(2, 3)]


@pytest.mark.slow
def test_one_process_imports_no_distributed() -> None:
    code = (
        "import sys, ablatrix.trainer.run; print([m for m in sys.modules if m.startswith('torch.distributed.fsdp')], "
    )
    code += "'ablatrix.trainer.distributed.process_group' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=code_root())
    assert result.stdout.split() == ["[]", "False"]
